"""What the engine makes sure of before it serves a model: that it can, and that the answers are the
model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from .engine import Engine

PROBE = "pyttc_probe"
TOKENS = 9


class Unsupported(ValueError):
    """A model the engine cannot serve, and why."""


def refuse_by_config(config: Any) -> None:
    """Raises Unsupported for what the configuration gives away."""
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise Unsupported(f"{name}: an encoder with cross-attention; pyttc serves decoders only")
    if getattr(config, "kv_lora_rank", None):
        raise Unsupported(f"{name}: multi-head latent attention (MLA) is not served")
    kinds = set(getattr(config, "layer_types", None) or ())
    others = kinds - {"full_attention", "sliding_attention"}
    if others:
        raise Unsupported(f"{name}: layers of kind {', '.join(sorted(others))} are not served")
    if getattr(config, "num_kv_shared_layers", 0):
        raise Unsupported(f"{name}: layers that share another layer's keys are not served")
    if getattr(config, "use_bidirectional_attention", False) or not getattr(
        config, "is_causal", True
    ):
        raise Unsupported(f"{name}: attention that looks ahead is not served")
    for rope in rope_parameters(config):
        kind = rope.get("rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise Unsupported(
                f"{name}: {kind} rotary embeddings depend on the longest path of a batch, so that "
                "a path's tokens would depend on its neighbours"
            )


def rope_parameters(config: Any) -> list[dict[str, Any]]:
    ropes = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in ropes.values() if isinstance(value, dict)]
    return nested or [ropes]


@torch.inference_mode()
def probe_attention(model: Any) -> list[tuple[int, int, int]]:
    """(Hq, Hkv, D) of each attention layer, seen in a forward pass of three tokens."""
    from transformers import AttentionInterface

    calls: dict[int, tuple[int, int, int]] = {}
    name = model.config.model_type

    def watch(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        if kwargs.get("s_aux") is not None:
            raise Unsupported(f"{name}: attention sinks are not served")
        if kwargs.get("position_bias") is not None:
            raise Unsupported(f"{name}: attention with position biases is not served")
        if not getattr(module, "is_causal", True):
            raise Unsupported(f"{name}: attention that looks ahead is not served")
        if key.shape != value.shape or query.shape[-1] != key.shape[-1]:
            raise Unsupported(
                f"{name}: keys {list(key.shape)} and values {list(value.shape)} of different "
                "shapes (as in multi-head latent attention) are not served"
            )
        layer = module.layer_idx
        if layer in calls or "pyttc_step" not in kwargs:
            raise Unsupported(f"{name}: its layers do not pass what the engine needs to attention")
        calls[layer] = (query.shape[1], key.shape[1], key.shape[3])
        return query.transpose(1, 2), None

    AttentionInterface.register(PROBE, watch)
    try:
        model.set_attn_implementation(PROBE)
        ids = torch.arange(3, device=model.device)[None]
        model.base_model(input_ids=ids, position_ids=ids, use_cache=False, pyttc_step=None)
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(f"{name}: a trial pass failed: {error}") from error
    layers = model.config.num_hidden_layers
    if sorted(calls) != list(range(layers)):
        raise Unsupported(
            f"{name}: {len(calls)} of its {layers} layers use attention that can be replaced; "
            "recurrent, linear or built-in attention is not served"
        )
    if len(set(calls.values())) > 1:
        raise Unsupported(f"{name}: layers with keys of different shapes are not served")
    if calls[0][2] % 8 or not 16 <= calls[0][2] <= 256:
        raise Unsupported(
            f"{name}: head dimension {calls[0][2]}, expected a multiple of 8 from 16 to 256"
        )
    return [calls[layer] for layer in range(layers)]


def refuse_unfixed(model: nn.Module) -> None:
    """Raises Unsupported where weights are multiplied by layers whose bits nobody fixed."""
    known = (nn.Linear, nn.Embedding)
    for path, module in model.named_modules():
        weights = [w for w in module.parameters(recurse=False) if w.dim() > 1]
        if weights and not isinstance(module, known):
            raise Unsupported(
                f"{type(model).__name__}: the bits of {path} ({type(module).__name__}) may depend "
                "on what runs beside a path; batch_invariant=False serves it all the same"
            )


def trial_tokens(vocab: int) -> list[list[int]]:
    """Two prompts, one the other's beginning, spread over the vocabulary."""
    long = [(i * vocab) // TOKENS for i in range(TOKENS)]
    return [long, long[:4]]


@torch.inference_mode()
def own_logits(model: Any, vocab: int) -> list[torch.Tensor]:
    """The logits at the end of each trial prompt, one at a time, as transformers computes them."""
    prompts = [torch.tensor([ids], device=model.device) for ids in trial_tokens(vocab)]
    return [model(ids, use_cache=False).logits[0, -1].float() for ids in prompts]


def check_answers(engine: Engine) -> None:
    """Raises Unsupported if the engine's logits are others, or a path's depend on its company."""
    name = engine.model.config.model_type
    prompts = trial_tokens(engine.model.vocab)
    together = engine.prefill([*prompts, *prompts], salt=None)
    logits = together.logits(np.arange(4))
    together.free()
    close = 1e-3 if engine.model.dtype is torch.float32 else 0.1
    for own, row in zip(engine.model.trial, logits, strict=False):
        scale = float(own.std()) + 1e-6
        if not float((own - row.float()).abs().max()) <= close * 10 * scale:
            raise Unsupported(
                f"{name}: on the engine its logits differ from transformers' by "
                f"{float((own - row.float()).abs().max()):.3g} at a spread of {scale:.3g}"
            )
    if engine.model.invariant:
        alone = engine.prefill([prompts[1]], salt=None).logits(np.arange(1))
        if not torch.equal(alone[0], logits[1]) or not torch.equal(logits[1], logits[3]):
            raise Unsupported(
                f"{name}: the bits of a path depend on what runs beside it, as in mixtures of "
                "experts; batch_invariant=False serves it all the same"
            )
