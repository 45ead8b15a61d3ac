"""Attention functions for transformers: `pyttc` for anyone's generate, `pyttc_paths` for the engine.

`attn_implementation="pyttc"` works on transformers' own caches: one new token a row is computed by
shared_prefix_attention, longer pieces (the prompt) by torch's scaled_dot_product_attention.
`pyttc_paths` is what Engine sets: it stores the new keys and values in the engine's pool and attends
over the tree of paths of the current step, which comes as the keyword argument `pyttc_step`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ..ops import prefix_tree_attention, shared_prefix_attention, store_kv
from ..prefix_tree import PrefixTree

Attended = tuple[torch.Tensor, None]


class Step(NamedTuple):
    """One forward pass: where its rows' keys and values go, and what each row attends to."""

    k_pages: torch.Tensor  # [layers, pages, page_size, Hkv, D]
    v_pages: torch.Tensor
    slots: torch.Tensor  # [rows], -1 for a row of padding
    tree: PrefixTree


def attend_paths(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    pyttc_step: Step | None = None,
    **_: Any,
) -> Attended:
    """query [1, Hq, rows, D], key and value [1, Hkv, rows, D]: a row is one token of one path."""
    if pyttc_step is None:
        raise RuntimeError(
            "this model belongs to a pyttc engine: call the engine, or give the model back with "
            'model.set_attn_implementation("pyttc")'
        )
    layer: Any = module.layer_idx
    k_pages, v_pages = pyttc_step.k_pages[layer], pyttc_step.v_pages[layer]
    store_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), k_pages, v_pages, pyttc_step.slots)
    out, _lse = prefix_tree_attention(
        query[0].transpose(0, 1),
        k_pages,
        v_pages,
        pyttc_step.tree,
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out.unsqueeze(0), None


def attend_cache(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> Attended:
    """query [B, Hq, T, D]; key and value [B, Hkv, S, D], all that the cache holds. Returns [B, T, Hq, D]."""
    if s_aux is not None or position_bias is not None or softcap is not None:
        raise ValueError(
            "attn_implementation='pyttc' has no attention sinks, position biases or soft-caps in "
            "generate: use pyttc.Engine for a model with soft-caps, 'eager' for the others"
        )
    if query.shape[2] == 1 and not (torch.is_grad_enabled() and query.requires_grad) and not dropout:
        return _attend_token(query, key, value, attention_mask, scaling), None
    causal = query.shape[2] > 1 and attention_mask is None and getattr(module, "is_causal", True)
    groups = query.shape[1] // key.shape[1]
    out = F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def _attend_token(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    batch, length = key.shape[0], key.shape[2]
    k, v = key.transpose(1, 2), value.transpose(1, 2)
    if mask is None:
        lens = torch.full((batch,), length, dtype=torch.int64, device=key.device)
        return _attend_runs(query, k, v, lens, scale)
    # padding and windows leave each row one run of visible tokens
    visible = mask.expand(batch, -1, -1, -1)[:, 0, 0, :length]
    if visible.dtype is not torch.bool:
        visible = visible == 0
    first = visible.to(torch.int8).argmax(-1)
    lens = visible.sum(-1)
    steps = torch.arange(length, device=key.device)
    run = (steps >= first[:, None]) & (steps < (first + lens)[:, None])
    if not torch.equal(run, visible):
        raise ValueError(
            "attn_implementation='pyttc' serves masks that leave each row one run of visible tokens "
            "(padding, sliding windows), and this one does not: use 'eager'"
        )
    at = (first[:, None] + steps).clamp(max=length - 1)[:, :, None, None]
    at = at.expand(-1, -1, k.shape[2], k.shape[3])
    return _attend_runs(query, k.gather(1, at), v.gather(1, at), lens, scale)


def _attend_runs(
    query: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lens: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Each row its own group: query [B, Hq, 1, D], the first lens[b] of k, v [B, S, Hkv, D]."""
    none = lens.new_zeros(lens.shape[0], 1)
    nothing = k.new_empty(k.shape[0], 1, 0, *k.shape[2:])
    out, _lse = shared_prefix_attention(
        query.transpose(1, 2), k, v, nothing, nothing, none, prefix_lens=lens, scale=scale
    )
    return out


def register() -> None:
    """Makes both names known to transformers. Calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("pyttc", attend_cache)
    AttentionMaskInterface.register("pyttc", sdpa_mask)
    AttentionInterface.register("pyttc_paths", attend_paths)
