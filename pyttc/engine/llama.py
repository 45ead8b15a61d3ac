"""A pass over rows through models of the Llama family on the CPU, without transformers' modules.

A step of few rows spends more time between the products than in them: a dozen small torch operators and
as many Python frames a layer. Here a layer is eight calls of native kernels. The weights stay the
model's: those of products with the same input are laid side by side in memory, and the modules keep
views of them. Rotary embeddings are the model's own. Hooks set on the modules later are not called.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .. import _C
from ..ops import prefix_tree_attention, store_kv
from .attention import Step

FAMILY = ("llama", "mistral", "qwen2", "qwen3")


class Product(NamedTuple):
    """One matrix product, of one or several linear layers."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor, out: torch.Tensor, threads: int) -> None:
        _C.linear(x, self.weight, self.bias, out, threads)


class Layer(NamedTuple):
    """What one decoder layer holds."""

    norms: tuple[torch.Tensor, torch.Tensor]  # before attention, before the MLP
    qkv: Product
    head_norms: tuple[torch.Tensor, torch.Tensor] | None  # of queries and of keys
    out: Product
    gate_up: Product
    down: Product
    scale: float
    window: int | None


class LlamaPass:
    """The decoder of a transformers model: hidden states of tokens, as its base model gives them."""

    def __init__(self, model: Any) -> None:
        self.base = model.base_model
        config = self.base.config
        self.eps = float(config.rms_norm_eps)
        self.layers = [read_layer(layer, config) for layer in self.base.layers]
        attention = self.base.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.heads: int = config.num_attention_heads
        self.widths = [p.weight.shape[0] for p in (self.layers[0].qkv, self.layers[0].gate_up)]
        self.turned: int = self.heads + config.num_key_value_heads  # heads that rotary

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        """[rows, H], after the last norm, of tokens [rows] at positions [rows]."""
        threads, eps = torch.get_num_threads(), self.eps
        x = F.embedding(tokens, self.base.embed_tokens.weight)
        cos, sin = (t[0] for t in self.base.rotary_emb(x[None], position_ids=positions[None]))
        # one set of buffers for all layers
        normed, added = torch.empty_like(x), torch.empty_like(x)
        qkv, gate_up = (x.new_empty(x.shape[0], width) for width in self.widths)
        heads = qkv.view(x.shape[0], -1, self.head_dim)
        q, k, v = heads.tensor_split((self.heads, self.turned), 1)
        turned, (gate, up) = heads[:, : self.turned], gate_up.chunk(2, 1)
        before = None
        for at, layer in enumerate(self.layers):
            _C.rms_norm(x, before, layer.norms[0], eps, normed, threads)
            layer.qkv(normed, qkv, threads)
            if layer.head_norms:
                for part, weight in zip((q, k), layer.head_norms, strict=True):
                    _C.rms_norm(part, None, weight, eps, part, threads)
            _C.rotary(turned, cos, sin, threads)
            k_pages, v_pages = step.k_pages[at], step.v_pages[at]
            store_kv(k, v, k_pages, v_pages, step.slots)
            attended, _ = prefix_tree_attention(
                q, k_pages, v_pages, step.tree, scale=layer.scale, window=layer.window
            )
            layer.out(attended.view(x.shape[0], -1), added, threads)
            _C.rms_norm(x, added, layer.norms[1], eps, normed, threads)
            layer.gate_up(normed, gate_up, threads)
            _C.silu_mul(gate, up, gate, threads)
            layer.down(gate, added, threads)
            before = added
        _C.rms_norm(x, before, self.base.norm.weight, eps, normed, threads)
        return normed


def serves(model: Any) -> bool:
    """Whether a model is one whose layers LlamaPass knows, every one of them."""
    config, base = model.config, model.base_model
    if config.model_type not in FAMILY or model.device.type != "cpu" or config.hidden_act != "silu":
        return False
    prefix = type(model).__name__.removesuffix("ForCausalLM")
    if type(base).__name__ != f"{prefix}Model" or not type(base).__module__.startswith(
        f"transformers.models.{config.model_type}."
    ):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return False
    frequencies: torch.Tensor = base.rotary_emb.inv_freq
    return 2 * frequencies.numel() == int(base.layers[0].self_attn.head_dim)


def read_layer(layer: Any, config: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
    head_norms = None
    if config.model_type == "qwen3":
        head_norms = (attention.q_norm.weight, attention.k_norm.weight)
    window = config.sliding_window if config.model_type == "mistral" else None
    return Layer(
        norms,
        fused(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms,
        fused(attention.o_proj),
        fused(mlp.gate_proj, mlp.up_proj),
        fused(mlp.down_proj),
        float(attention.scaling),
        getattr(attention, "sliding_window", window),
    )


@torch.no_grad()
def fused(*linears: nn.Linear) -> Product:
    """The product of several linear layers, whose weights become views of one matrix."""
    if len(linears) == 1:
        return Product(linears[0].weight, linears[0].bias)
    weight = torch.cat([linear.weight for linear in linears])
    for linear, rows in zip(
        linears, weight.split([linear.out_features for linear in linears]), strict=True
    ):
        linear.weight.data = rows
    biases: list[torch.Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return Product(weight, torch.cat(biases) if biases else None)
