"""A pass over rows through models of the Llama family on the CPU, without transformers' modules.

A step of few rows spends more time between the products than in them: a dozen small torch operators and
as many Python frames a layer. Here all layers are one native call. The weights stay the model's: those of
products with the same input are laid side by side in memory, biases too, and the parameters become views of
them. Rotary embeddings are the model's own, computed once for every position. Hooks set on the modules later
are not called.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .. import _C
from ..ops.sample import Sample
from ..ops.sampling import outputs
from ..prefix_tree import PrefixTree
from .attention import Step
from .room import Room
from .rows import RowsLinear

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

    layers: list[Layer]
    head: Product
    embedding: torch.Tensor
    last_norm: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]

    def __init__(self, model: Any) -> None:
        self.base = model.base_model
        self.eps = float(self.base.config.rms_norm_eps)
        self._places: list[int] = []
        self.renew(model)

    def renew(self, model: Any) -> None:
        """Takes up weights that were replaced, and the rotary embeddings anew."""
        if places(model) != self._places:
            self.layers, self._places = [], []  # lets go of what is not the model's any more
            self._move(model)
            self._places = places(model)
        self.rotary = self._rotary(POSITIONS)

    def _move(self, model: Any) -> None:
        base = self.base
        move = Mover(list(model.parameters()))
        layers = [read_layer(layer, base.config, move) for layer in base.layers]
        self.head = fused(move, model.get_output_embeddings())
        self.embedding = move(base.embed_tokens.weight)
        self.last_norm = move(base.norm.weight)
        for parameter in model.parameters():  # one left behind would hold the whole file in memory
            move(parameter)
        self.layers = layers

    def _rotary(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) [positions, D] of the rotary embedding."""
        every = torch.arange(positions)[None]
        cos, sin = self.base.rotary_emb(self.embedding, position_ids=every)
        return cos[0], sin[0]

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        """[rows, H], after the last norm, of tokens [rows] at positions [rows]."""
        out = self.embedding.new_empty(tokens.shape[0], self.embedding.shape[1])
        model = self._model((step.k_pages, step.v_pages), int(positions.max()))
        tree, threads = step.tree.host(), torch.get_num_threads()
        _C.llama_pass(model, tokens, positions, step.slots, tree, out, threads)
        return out

    def steps(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        pages: tuple[torch.Tensor, torch.Tensor],
        tree: PrefixTree,
        steps: int,
        ends: torch.Tensor,
        topk: int,
        **sampling: Any,
    ) -> tuple[torch.Tensor, Sample]:
        """Up to `steps` steps of decoding, the last of them that in which a row draws a token of `ends` [V]
        or none: the bits of single ones.

        Args:
            tokens, positions: [rows], of the first step.
            pages: of keys and values, of all layers.
            tree: every row has a leaf of its own, whose length and pages are those after all steps.
            topk, sampling: as for `sample`, with tensors [rows].

        Returns:
            The last step's hidden states [rows, H], and what was drawn, [steps done, rows, ...].
        """
        rows = tokens.shape[0]
        hidden = self.embedding.new_empty(rows, self.embedding.shape[1])
        drawn = outputs(hidden.new_empty(steps * rows, 0), topk, torch.float32)
        done, _seconds = _C.llama_steps(
            self._model(pages, int(positions.max()) + steps),
            self.head,
            tokens,
            positions,
            tree.host(),
            steps,
            ends,
            topk=topk,
            hidden=hidden,
            drawn=drawn,
            threads=torch.get_num_threads(),
            **sampling,
        )
        return hidden, Sample(*(each.view(steps, rows, *each.shape[1:])[:done] for each in drawn))

    def _model(self, pages: tuple[torch.Tensor, torch.Tensor], last: int) -> tuple[Any, ...]:
        """What the native passes read, for positions up to `last`."""
        known = self.rotary[0].shape[0]
        if last >= known:
            self.rotary = self._rotary(max(last + 1, 2 * known))
        return self.layers, self.embedding, self.last_norm, self.eps, *self.rotary, *pages

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, V] of hidden states [rows, H]."""
        weight, bias = self.head
        out: torch.Tensor = hidden.new_empty(hidden.shape[0], weight.shape[0])
        _C.linear(hidden, weight, bias, out, torch.get_num_threads())
        return out


class Mover:
    """Moves parameters into memory of their own; those that share theirs go on sharing it."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.room = Room(len(parameters), sum(parameter.nbytes for parameter in parameters))
        self.moved: dict[tuple[int, torch.Size], torch.Tensor] = {}

    def __call__(self, *parameters: torch.Tensor) -> torch.Tensor:
        """One tensor of which the parameters are views from now on, one after the other."""
        first = parameters[0]
        found = self.moved.get((first.data_ptr(), first.shape))
        if len(parameters) == 1 and found is not None:
            first.data = found
            return found
        counts = [parameter.shape[0] for parameter in parameters]
        whole = self.room.take((sum(counts), *first.shape[1:]), first.dtype)
        for parameter, part in zip(parameters, whole.split(counts), strict=True):
            self.moved[parameter.data_ptr(), part.shape] = part.copy_(parameter.data)
            self.moved[part.data_ptr(), part.shape] = parameter.data = part
        return whole


_passes: WeakKeyDictionary[nn.Module, LlamaPass] = WeakKeyDictionary()


def pass_of(model: Any) -> LlamaPass | None:
    """The one pass of a model, which moves its weights; None for a model that none serves."""
    if not serves(model):
        return None
    found = _passes.get(model)
    if found is None:
        found = _passes[model] = LlamaPass(model)
    else:
        found.renew(model)
    return found


def places(model: nn.Module) -> list[int]:
    return [parameter.data_ptr() for parameter in model.parameters()]


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
    if len({parameter.dtype for parameter in model.parameters()}) > 1:
        return False
    theirs = (
        f"transformers.models.{config.model_type}.",
        "transformers.activations",
        "torch.nn.modules.",
    )
    known = (*theirs, RowsLinear.__module__)
    if not all(type(m).__module__.startswith(known) for m in model.modules()):
        return False  # one with adapters, say
    frequencies: torch.Tensor = base.rotary_emb.inv_freq
    return 2 * frequencies.numel() == int(base.layers[0].self_attn.head_dim)


def read_layer(layer: Any, config: Any, move: Mover) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = (move(layer.input_layernorm.weight), move(layer.post_attention_layernorm.weight))
    head_norms = None
    if config.model_type == "qwen3":
        head_norms = (move(attention.q_norm.weight), move(attention.k_norm.weight))
    window = config.sliding_window if config.model_type == "mistral" else None
    return Layer(
        norms,
        fused(move, attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms,
        fused(move, attention.o_proj),
        fused(move, mlp.gate_proj, mlp.up_proj),
        fused(move, mlp.down_proj),
        float(attention.scaling),
        getattr(attention, "sliding_window", window),
    )


def fused(move: Mover, *linears: nn.Linear) -> Product:
    """The product of several linear layers, whose weights and biases become views of its own."""
    biases = [linear.bias for linear in linears if linear.bias is not None]
    weight = move(*(linear.weight for linear in linears))
    return Product(weight, move(*biases) if biases else None)
