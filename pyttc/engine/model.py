"""A transformers causal language model whose forward pass runs on rows: one token of one path each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import attention
from .rows import fix_rows, padded_rows, same_bits

PROBE = "pyttc_probe"


class Unsupported(ValueError):
    """A model the engine cannot serve, and why."""


class RowModel:
    """The model, its attention's shape, and its forward pass over rows.

    Attributes:
        model: the transformers model, with attention replaced.
        layers, kv_heads, head_dim: what a pool of keys and values has to hold.
        invariant: whether the bits of a row are the same whatever rows run beside it.
    """

    def __init__(self, model: Any, batch_invariant: bool) -> None:
        self.model, self.config = model.eval().requires_grad_(False), model.config
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.invariant = batch_invariant
        refuse_by_config(self.config)
        probe = probe_attention(model)
        self.layers, self.heads = len(probe), probe[0][0]
        self.kv_heads, self.head_dim = probe[0][1:]
        self.head: nn.Module = model.get_output_embeddings()
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        self.vocab: int = self.head.weight.shape[0]  # type: ignore[assignment, index, union-attr]
        linears = fix_rows(model) if batch_invariant else []
        inner = {m.weight.shape: m.weight for m in linears if m is not self.head}
        self._weights: list[torch.Tensor] = list(inner.values())
        embedded = model.get_input_embeddings().weight.numel()
        self.parameters = sum(p.numel() for p in model.parameters()) - embedded
        self.head_parameters = self.head.weight.numel()  # type: ignore[operator, union-attr]
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            self.parameters -= self.head_parameters  # type: ignore[assignment]
        model.set_attn_implementation("pyttc_paths")

    def padded(self, rows: int) -> int:
        """How many rows a pass over `rows` runs: a number at which the bits of a row are known."""
        return padded_rows(rows, self._weights) if self.invariant else rows

    @torch.inference_mode()
    def hidden(
        self, tokens: torch.Tensor, positions: torch.Tensor, step: attention.Step
    ) -> torch.Tensor:
        """The last hidden states [rows, H] of tokens [rows] at positions [rows]."""
        out = self.model.base_model(
            input_ids=tokens[None],
            position_ids=positions[None],
            use_cache=False,
            pyttc_step=step,
        )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, V] from hidden states [rows, H]."""
        logits: torch.Tensor = self.head(hidden)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def load(source: str, device: torch.device, dtype: torch.dtype | None, batch_invariant: bool) -> RowModel:
    """The model at `source`, a directory or a hub id: safetensors only, no code from the checkpoint.

    Raises:
        Unsupported: with the reason.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    refuse_by_config(config)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype="auto" if dtype is None else dtype,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return RowModel(model.to(device), batch_invariant)


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
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        raise Unsupported(f"{name}: attention that looks ahead is not served")
    for rope in rope_parameters(config):
        kind = rope.get("rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise Unsupported(
                f"{name}: {kind} rotary embeddings depend on the longest path of a batch, so that a "
                "path's tokens would depend on its neighbours"
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
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if kwargs.get("s_aux") is not None:
            raise Unsupported(f"{name}: attention sinks are not served")
        if kwargs.get("position_bias") is not None:
            raise Unsupported(f"{name}: attention with position biases is not served")
        if not getattr(module, "is_causal", True):
            raise Unsupported(f"{name}: attention that looks ahead is not served")
        if key.shape != value.shape or query.shape[-1] != key.shape[-1]:
            raise Unsupported(
                f"{name}: keys {list(key.shape)} and values {list(value.shape)} of different shapes "
                "(as in multi-head latent attention) are not served"
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
        raise Unsupported(f"{name}: head dimension {calls[0][2]}, expected a multiple of 8 from 16 to 256")
    return [calls[layer] for layer in range(layers)]
