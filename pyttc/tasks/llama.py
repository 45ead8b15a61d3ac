"""A Llama-architecture model in plain torch for training: the names and the arithmetic of transformers'
LlamaForCausalLM with tied embeddings, so that its weights are a transformers checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, named as in a transformers config."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 32
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.head_dim = shape.head_dim
        width, head_dim = shape.hidden_size, shape.head_dim
        self.q_proj = nn.Linear(width, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * head_dim, width, bias=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: Cache | None, layer: int
    ) -> torch.Tensor:
        batch, length, _ = x.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = F.linear(x, weight.to(x.dtype)).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        repeat = self.heads // self.kv_heads
        if length > 512:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            # heads that share keys are rows of one product; the CPU's fused attention is slower here
            q = q.reshape(batch, self.kv_heads, repeat * length, self.head_dim)
            scores = (q @ k.transpose(-1, -2)).float() * self.head_dim**-0.5
            if length > 1:
                mask = torch.ones(length, k.shape[2], dtype=torch.bool).tril(k.shape[2] - length)
                scores = scores.masked_fill(~mask.repeat(repeat, 1), float("-inf"))
            out = scores.softmax(-1).to(x.dtype) @ v
            out = out.view(batch, self.heads, length, self.head_dim)
        out = out.transpose(1, 2).reshape(batch, length, -1)
        return F.linear(out, self.o_proj.weight.to(x.dtype))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.cat([self.gate_proj.weight, self.up_proj.weight]).to(x.dtype)
        gate, up = F.linear(x, weight).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight.to(x.dtype))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), MLP(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: Cache | None, layer: int
    ) -> torch.Tensor:
        dtype = cos.dtype
        x = x + self.self_attn(self.input_layernorm(x).to(dtype), cos, sin, cache, layer).float()
        return x + self.mlp(self.post_attention_layernorm(x).to(dtype)).float()


class Llama(nn.Module):
    """Tokens [B, L] to last hidden states [B, L, H] after the final norm; `logits` maps those on. `reward`, a
    linear head on them that is trained beside the text, is no part of the transformers checkpoint.

    Weights and the residual stream are float32; matrix products run in `dtype`.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.reward = nn.Linear(shape.hidden_size, 1)

    def initialize(self, seed: int) -> None:
        """Normal weights of standard deviation 0.02, what is written to the residual stream smaller."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.shape.num_hidden_layers) ** 0.5 if deep else 0.02
                nn.init.normal_(weight, std=std, generator=generator)
        nn.init.zeros_(self.reward.bias)

    def forward(self, tokens: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        start = 0 if cache is None else cache.length
        places = torch.arange(start, start + tokens.shape[1], dtype=torch.float32)
        half = torch.arange(0, self.shape.head_dim, 2, dtype=torch.float32) / self.shape.head_dim
        angles = torch.outer(places, self.shape.rope_theta**-half)
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        x = F.embedding(tokens, self.embed_tokens.weight)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, cache, i)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden.to(self.dtype), self.embed_tokens.weight.to(self.dtype)).float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class Cache:
    """Keys and values of a batch whose rows are all equally long; preallocated."""

    def __init__(self, shape: Shape, batch: int, capacity: int, dtype: torch.dtype) -> None:
        size = (batch, shape.num_key_value_heads, capacity, shape.head_dim)
        self.keys = [torch.empty(size, dtype=dtype) for _ in range(shape.num_hidden_layers)]
        self.values = [torch.empty(size, dtype=dtype) for _ in range(shape.num_hidden_layers)]
        self.length = 0

    def extend(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, end = self.length, self.length + k.shape[2]
        self.keys[layer][:, :, start:end] = k
        self.values[layer][:, :, start:end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows, in this order; a row may come more than once."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
