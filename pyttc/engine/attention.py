"""Attention functions for transformers: `pyttc` for generate, `pyttc_paths` for the engine.

`attn_implementation="pyttc"` works on transformers' own caches: one new token a row is computed by
shared_prefix_attention, longer pieces (the prompt) by torch's scaled_dot_product_attention.
`pyttc_paths` is what Engine sets: it stores the new keys and values in the engine's pool and
attends over the tree of paths of the current step, the keyword argument `pyttc_step`.
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
    """query [B, Hq, T, D]; key and value [B, Hkv, S, D], all the cache holds; out [B, T, Hq, D]."""
    if s_aux is not None or position_bias is not None:
        raise ValueError(
            "attn_implementation='pyttc' has no attention sinks or position biases: use 'eager'"
        )
    trained = torch.is_grad_enabled() and query.requires_grad
    if query.shape[2] == 1 and not trained and not dropout:
        if attention_mask is None and softcap is None:
            return _attend_all(query, key, value, scaling), None
        return _attend_runs(query, key, value, attention_mask, scaling, softcap), None
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = query.shape[2] > 1 and attention_mask is None and getattr(module, "is_causal", True)
    if softcap is None:
        out = F.scaled_dot_product_attention(
            query, key, value, attention_mask, dropout, is_causal=causal, scale=scaling
        )
        return out.transpose(1, 2).contiguous(), None
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if causal:
        seen = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device)
        attention_mask = seen.tril(scores.shape[3] - scores.shape[2])
    if attention_mask is not None and attention_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1, torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _attend_all(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """One token a row that sees all its row holds: every row a group of its own."""
    k, v = key.transpose(1, 2), value.transpose(1, 2)
    lens = torch.zeros(k.shape[0], 1, dtype=torch.int64, device=k.device)
    nothing = k.new_empty(k.shape[0], 1, 0, *k.shape[2:])
    out, _lse = shared_prefix_attention(
        query.transpose(1, 2), k, v, nothing, nothing, lens, scale=scale
    )
    return out


def _attend_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """One token a row that sees one run of what its row holds, as padding and windows leave it."""
    batch, length = key.shape[0], key.shape[2]
    visible = torch.ones(batch, length, dtype=torch.bool)
    if mask is not None:
        seen = mask if mask.dtype is torch.bool else mask == 0
        visible = seen.expand(batch, -1, -1, -1)[:, 0, 0, :length].cpu()
    outs = []
    for row, tokens in enumerate(visible):
        pages = tokens.nonzero()[:, 0]
        if pages.numel() and int(pages[-1] - pages[0]) != pages.numel() - 1:
            raise ValueError(
                "attn_implementation='pyttc' serves masks that leave each row one run of visible "
                "tokens (padding, sliding windows), and this one does not: use 'eager'"
            )
        tree = PrefixTree([-1], [pages], [pages.numel()], [0], 1, device=key.device)
        k, v = (t[row].transpose(0, 1).unsqueeze(1) for t in (key, value))
        q = query[row].transpose(0, 1)
        outs.append(prefix_tree_attention(q, k, v, tree, scale=scale, softcap=softcap)[0])
    return torch.stack(outs)


def register() -> None:
    """Makes both names known to transformers. Calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("pyttc", attend_cache)
    AttentionMaskInterface.register("pyttc", sdpa_mask)
    AttentionInterface.register("pyttc_paths", attend_paths)
