"""A transformers causal language model whose forward pass runs on rows: one token of one path
each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from . import attention, llama
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
    """

    def __init__(self, model: Any, batch_invariant: bool) -> None:
        self.model, self.config = model.eval().requires_grad_(False), model.config
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.invariant = batch_invariant
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
        self._pass = llama.LlamaPass(model) if batch_invariant and llama.serves(model) else None
        shorten_lookups(model)

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


def shorten_lookups(model: nn.Module) -> None:
    """Makes layers and weights plain attributes of the modules they belong to.

    nn.Module looks them up in Python, hundreds of times a step: a tenth of the time a step spends outside
    of kernels. Assigning another one still works: nn.Module.__setattr__ takes the plain one away.
    """
    for module in model.modules():
        for name, held in (*module._modules.items(), *module._parameters.items()):
            if held is not None:
                module.__dict__[name] = held


def soft_cap(cap: float, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x / cap) * cap


def load(
    source: str, device: torch.device, dtype: torch.dtype | None, batch_invariant: bool
) -> RowModel:
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
    return RowModel(placed.to(device), batch_invariant)
