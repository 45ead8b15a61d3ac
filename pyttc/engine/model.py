"""A transformers causal language model whose forward pass runs on rows: one token of one path
each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from . import attention, llama, weights
from .rows import fix_rows, padded_rows, piecewise
from .support import Unsupported, own_logits, probe_attention, refuse_by_config, refuse_unfixed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class RowModel:
    """The model, its attention's shape, and its forward pass over rows.

    Attributes:
        model: the transformers model, with attention replaced.
        layers, kv_heads, head_dim: what a pool of keys and values has to hold.
        trial: the model's own logits of the trial prompts, before attention was replaced.
        invariant: whether the bits of a row are the same whatever rows run beside it.
        version: of the weights; another one after every change that was seen.
    """

    def __init__(self, model: Any, batch_invariant: bool) -> None:
        self.model, self.config = model.eval(), model.config
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.invariant = batch_invariant
        devices = {str(parameter.device) for parameter in model.parameters()}
        if len(devices) > 1 or self.device.type not in ("cpu", "cuda"):
            raise Unsupported(
                f"{self.config.model_type}: weights on {', '.join(sorted(devices))} are not served; "
                "they have to be on the CPU or on one GPU"
            )
        if self.dtype not in DTYPES:
            raise Unsupported(
                f"{self.config.model_type}: weights in {self.dtype} are not served; "
                "dtype=torch.float32 converts them"
            )
        refuse_by_config(self.config)
        self.vocab: int = model.get_output_embeddings().weight.shape[0]
        attention.register()
        model.set_attn_implementation("eager")
        self.trial = own_logits(model, self.vocab)
        probe = probe_attention(model)
        self.layers, self.heads = len(probe), probe[0][0]
        self.kv_heads, self.head_dim = probe[0][1:]
        self.head: nn.Module = model.get_output_embeddings()
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        if batch_invariant:
            refuse_unfixed(model)
        linears = fix_rows(model, self.head_dim) if batch_invariant else []
        inner = {(m.weight.shape, m.bias is None): m for m in linears if m is not self.head}
        self._linears: list[nn.Linear] = list(inner.values())
        embedded = model.get_input_embeddings().weight.numel()
        self.parameters = sum(p.numel() for p in model.parameters()) - embedded
        self.head_parameters = self.head.weight.numel()
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            self.parameters -= self.head_parameters
        model.set_attn_implementation("pyttc_paths")
        self._kinds, self.version = weights.kinds(model), 0
        with torch.inference_mode(False):
            self._pass = llama.pass_of(model) if batch_invariant else None
        self.steps = self._pass.steps if self._pass else None
        shorten_lookups(model)
        self._state = weights.state(model)

    def follow(self) -> None:
        """Takes up what was done to the model since the last call: weights, mode, attention.

        Raises:
            ValueError: for parameters of another name, shape, dtype or device.
        """
        if not self._pass and self.model.training:
            self.model.eval()
        if not self._pass and self.config._attn_implementation != "pyttc_paths":
            self.model.set_attn_implementation("pyttc_paths")
        if weights.state(self.model) != self._state:
            self.renew()

    @torch.inference_mode(False)
    def renew(self) -> None:
        """Takes up weights that have changed, seen or not."""
        weights.check_kinds(self._kinds, weights.kinds(self.model))
        if self._pass:
            self._pass.renew(self.model)
        self._state = weights.state(self.model)
        self.version += 1

    def padded(self, rows: int) -> int:
        """How many rows a pass over `rows` runs: a number at which the bits of a row are known."""
        return padded_rows(rows, self._linears) if self.invariant else rows

    def hidden(
        self, tokens: torch.Tensor, positions: torch.Tensor, step: attention.Step
    ) -> torch.Tensor:
        """The last hidden states [rows, H] of tokens [rows] at positions [rows]."""
        if self._pass:
            return self._pass(tokens, positions, step)
        with torch.inference_mode():
            out = self.model.base_model(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                pyttc_step=step,
            )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, V] from hidden states [rows, H]."""
        if self._pass:
            return self._pass.logits(hidden)
        with torch.inference_mode():
            logits: torch.Tensor = self.head(hidden)
            if self.softcap is not None:
                capped = partial(soft_cap, self.softcap)
                logits = piecewise(capped, logits) if self.invariant else capped(logits)
            return logits


def row_model(model: Any, batch_invariant: bool) -> RowModel:
    """The RowModel of a model in memory. One that is refused gets its attention and mode back.

    Raises:
        TypeError, Unsupported: with the reason.
    """
    from transformers import PreTrainedModel

    own: Any = model
    if not isinstance(model, PreTrainedModel):
        name = type(model).__name__
        raise TypeError(f"model: got {name}, expected a transformers causal language model")
    if own.get_output_embeddings() is None:
        raise Unsupported(f"{model.config.model_type}: {type(model).__name__} gives no logits")
    attends, training = model.config._attn_implementation, model.training
    try:
        return RowModel(model, batch_invariant)
    except BaseException:
        model.set_attn_implementation(attends or "eager")
        model.train(training)
        raise


def shorten_lookups(model: nn.Module) -> None:
    """Makes layers plain attributes of the modules they belong to.

    nn.Module looks them up in Python, hundreds of times a step: a tenth of the time a step spends outside
    of kernels. Assigning another one still works: nn.Module.__setattr__ takes the plain one away. Weights are
    left alone: torch.func.functional_call exchanges them where it takes nothing away.
    """
    for module in model.modules():
        for name, held in module._modules.items():
            if held is not None:
                module.__dict__[name] = held


def soft_cap(cap: float, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x / cap) * cap


def chosen_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: got {device!r}, expected 'cpu' or 'cuda'") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, expected 'cpu' or 'cuda'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: got {device!r}, but {torch.cuda.device_count()} can be used")
    return chosen


def load(source: str, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The model at `source`, a directory or a hub id: safetensors only, no code of its own.

    Raises:
        Unsupported: with the reason.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected torch.float32, bfloat16 or float16")
    attention.register()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise OSError(
            f"source: got {source!r}, no model can be loaded from there: {error}"
        ) from error
    refuse_by_config(config)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype="auto" if dtype is None else dtype,
        use_safetensors=True,
        trust_remote_code=False,
    )
    placed: Any = model
    return placed.to(device).requires_grad_(False)


def load_tokenizer(source: str) -> Any:
    """The checkpoint's tokenizer, or None where it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None
