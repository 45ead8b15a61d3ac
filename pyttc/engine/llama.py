"""A pass over rows through models of the Llama family on the CPU, without transformers' modules.

A step of few rows spends more time between the products than in them: a dozen small torch operators and
as many Python frames a layer. Here all layers are one native call. The weights stay the model's: those of
products with the same input are laid side by side in memory, and the modules keep views of them. Rotary
embeddings are the model's own, computed once for every position. Hooks set on the modules later are not
called.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from .. import _C
from .attention import Step
from .room import Room

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
POSITIONS = 1024  # whose rotary embeddings are computed at first


class Product(NamedTuple):
    """One matrix product, of one or several linear layers."""

    weight: torch.Tensor
    bias: torch.Tensor | None


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
        linears = [m for m in self.base.layers.modules() if isinstance(m, nn.Linear)]
        linears.append(model.get_output_embeddings())
        parameters = list(model.parameters())
        room = Room(len(parameters), sum(parameter.nbytes for parameter in parameters))
        self.layers = [read_layer(layer, config, room) for layer in self.base.layers]
        self.head = fused(room, linears[-1])
        moved = {id(linear.weight) for linear in linears}
        for parameter in parameters:  # one left behind would hold the whole file in memory
            if id(parameter) not in moved:
                parameter.data = room.take(parameter.shape, parameter.dtype).copy_(parameter.data)
        self.embedding: torch.Tensor = self.base.embed_tokens.weight
        self.last_norm: torch.Tensor = self.base.norm.weight
        self.rotary = self._rotary(POSITIONS)

    def _rotary(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) [positions, D] of the rotary embedding."""
        every = torch.arange(positions)[None]
        cos, sin = self.base.rotary_emb(self.embedding, position_ids=every)
        return cos[0], sin[0]

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        """[rows, H], after the last norm, of tokens [rows] at positions [rows]."""
        known, last = self.rotary[0].shape[0], int(positions.max())
        if last >= known:
            self.rotary = self._rotary(max(last + 1, 2 * known))
        out = self.embedding.new_empty(tokens.shape[0], self.embedding.shape[1])
        tree = step.tree
        _C.llama_pass(
            self.layers,
            self.embedding,
            self.last_norm,
            self.eps,
            tokens,
            positions,
            *self.rotary,
            step.k_pages,
            step.v_pages,
            step.slots,
            tree.parents,
            tree.page_offsets,
            tree.page_ids,
            tree.lengths,
            tree.leaves,
            out,
            torch.get_num_threads(),
        )
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, V] of hidden states [rows, H]."""
        weight, bias = self.head
        out: torch.Tensor = hidden.new_empty(hidden.shape[0], weight.shape[0])
        _C.linear(hidden, weight, bias, out, torch.get_num_threads())
        return out


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


def read_layer(layer: Any, config: Any, room: Room) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
    head_norms = None
    if config.model_type == "qwen3":
        head_norms = (attention.q_norm.weight, attention.k_norm.weight)
    window = config.sliding_window if config.model_type == "mistral" else None
    return Layer(
        norms,
        fused(room, attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms,
        fused(room, attention.o_proj),
        fused(room, mlp.gate_proj, mlp.up_proj),
        fused(room, mlp.down_proj),
        float(attention.scaling),
        getattr(attention, "sliding_window", window),
    )


@torch.no_grad()
def fused(room: Room, *linears: nn.Linear) -> Product:
    """The product of several linear layers, whose weights become views of one matrix."""
    counts = [linear.out_features for linear in linears]
    weight = room.take((sum(counts), linears[0].in_features), linears[0].weight.dtype)
    torch.cat([linear.weight for linear in linears], out=weight)
    for linear, rows in zip(linears, weight.split(counts), strict=True):
        linear.weight.data = rows
    biases: list[torch.Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return Product(weight, torch.cat(biases) if biases else None)
