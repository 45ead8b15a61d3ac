"""The shortest good thing one writes in plain torch: keys and values of the prefix held once, attended by all
paths in one flash call with every path's query heads as rows, each path's own tokens in a second, the two
merged by their log-sum-exp. Weights are packed once for oneDNN, which `F.linear` would do at every call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional as F

from . import child

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
Linear = Callable[[torch.Tensor], torch.Tensor]


def packed(linear: torch.nn.Linear) -> Linear:
    bias = linear.bias
    if linear.weight.dtype is not torch.bfloat16:
        return linear
    weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Cascade:
    package = "torch"

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        torch.set_num_threads(threads)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.config, self.body, self.dtype = loaded.config, loaded.model, loaded.dtype
        self.head, self.layers = packed(loaded.lm_head), []
        for layer in self.body.layers:
            linears = {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}
            made = {n: packed(x) for n, x in linears.items() if isinstance(x, torch.nn.Linear)}
            norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
            self.layers.append((made, norms))
        self.prompt: list[int] = []

    def forward(self, ids: torch.Tensor, at: int, attend: Any) -> torch.Tensor:
        """Logits of the last of each row's tokens; ids [N, T] from position at on."""
        (n, t), config = ids.shape, self.config
        x = self.body.embed_tokens(ids)
        cos, sin = self.body.rotary_emb(x, torch.arange(at, at + t)[None])
        cos, sin = cos[:, None], sin[:, None]
        size, eps = (config.hidden_size,), config.rms_norm_eps
        for index, (w, norms) in enumerate(self.layers):
            y = F.rms_norm(x, size, norms[0], eps)
            q, k, v = (
                w[name](y).view(n, t, -1, config.hidden_size // config.num_attention_heads)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            q, k = (turned(z.transpose(1, 2), cos, sin) for z in (q, k))
            x = x + w["o_proj"](attend(index, q, k, v.transpose(1, 2)).reshape(n, t, -1))
            y = F.rms_norm(x, size, norms[1], eps)
            x = x + w["down_proj"](F.silu(w["gate_proj"](y)) * w["up_proj"](y))
        return self.head(F.rms_norm(x[:, -1], size, self.body.norm.weight, eps))

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> None:
        self.prompt, self.prefix = prompt, []

        def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.prefix.append((k.contiguous(), v.contiguous()))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return out.transpose(1, 2)

        self.logits = self.forward(torch.tensor([prompt]), 0, attend)

    @torch.inference_mode()
    def decode(
        self, prompt: list[int], paths: int, steps: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        if prompt != self.prompt:
            self.prefill(prompt)
        heads = self.prefix[0][0].shape[1]
        shape = (2, len(self.layers), paths, heads, steps, self.prefix[0][0].shape[3])
        own = torch.empty(shape, dtype=self.dtype)

        def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            own_k, own_v = own[0, index], own[1, index]
            own_k[:, :, step], own_v[:, :, step] = k[:, :, 0], v[:, :, 0]
            q = q.view(paths, heads, -1, q.shape[3])  # the heads of a group as rows
            rows = q.transpose(0, 1).flatten(1, 2)[None]
            out, lse = flash(rows, *self.prefix[index])
            mine, mine_lse = flash(q, own_k[:, :, : step + 1], own_v[:, :, : step + 1])
            out = out.view(heads, paths, -1, q.shape[3]).transpose(0, 1)
            lse = lse.view(heads, paths, -1).transpose(0, 1)
            return torch.lerp(mine, out, torch.sigmoid(lse - mine_lse)[..., None].to(out.dtype))

        tokens = [self.draw(self.logits.expand(paths, -1))]
        mark()
        for step in range(steps):
            tokens.append(self.draw(self.forward(tokens[-1], len(prompt) + step, attend)))
            mark()
        drawn: list[list[int]] = torch.cat(tokens, 1).tolist()
        return drawn

    @staticmethod
    def draw(logits: torch.Tensor) -> torch.Tensor:
        best, ids = logits.topk(child.TOP_K)
        return ids.gather(1, (best.float() / child.TEMPERATURE).softmax(-1).multinomial(1))


if __name__ == "__main__":
    child.serve(Cascade)
