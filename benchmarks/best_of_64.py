"""One decoding step of best-of-64 on random tensors: checked, and timed against plain torch.

    python -m benchmarks.best_of_64 [--threads N]

64 paths share a prefix of 4,096 tokens and have 64 of their own; 14 query heads and 2 KV heads of
64, a vocabulary of 128,256. The step: attention, the logits, one draw a path with top-k 50 and top-p
0.95, its log-probability, the best path. The torch column is the usual pipeline: attention on keys
and values expanded to every path, then log_softmax, topk, top-p, multinomial, gather.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import pyttc

from .common import measure, rotating
from .table import duration

N, P, S, HQ, HKV, D, V = 64, 4096, 64, 14, 2, 64, 128_256
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.95


@dataclass
class Step:
    """The inputs of one step; the cache as pyttc keeps it, and expanded as torch needs it."""

    q: torch.Tensor  # [1, N, HQ, D]
    k_prefix: torch.Tensor  # [1, P, HKV, D]
    v_prefix: torch.Tensor
    k_suffix: torch.Tensor  # [1, N, S, HKV, D]
    v_suffix: torch.Tensor
    suffix_lens: torch.Tensor  # [1, N]
    path_ids: torch.Tensor  # [N]
    positions: torch.Tensor  # [N]

    def expanded(self, prefix: torch.Tensor, suffix: torch.Tensor) -> torch.Tensor:
        """[N, HKV, P + S, D]"""
        whole = torch.cat([prefix.expand(N, P, HKV, D), suffix[0]], dim=1)
        return whole.transpose(1, 2).contiguous()


def random_step() -> Step:
    kv = [
        torch.randn(*shape, HKV, D).bfloat16() for shape in ((1, P), (1, P), (1, N, S), (1, N, S))
    ]
    q = torch.randn(1, N, HQ, D).bfloat16()
    paths = torch.arange(N)
    return Step(q, *kv, torch.full((1, N), S), paths, torch.full((N,), P + S))


def torch_attention(step: Step, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q = step.q[0].unsqueeze(2)  # [N, HQ, 1, D]
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def torch_draw(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs = F.log_softmax(logits / TEMPERATURE, -1)
    best, columns = logprobs.topk(TOP_K)
    p = best.exp()
    p = p.masked_fill(p.cumsum(-1) - p >= TOP_P * p.sum(-1, keepdim=True), 0)
    tokens = columns.gather(-1, torch.multinomial(p, 1))
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


def attention(step: Step) -> torch.Tensor:
    caches = step.k_prefix, step.v_prefix, step.k_suffix, step.v_suffix
    return pyttc.shared_prefix_attention(step.q, *caches, step.suffix_lens)[0]


def draw(step: Step, logits: torch.Tensor, impl: str | None = None) -> pyttc.ops.sample.Sample:
    return pyttc.sample(
        logits,
        seed=0,
        path_ids=step.path_ids,
        positions=step.positions,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        top_p=TOP_P,
        impl=impl,
    )


def attention_is_right(step: Step, k: torch.Tensor, v: torch.Tensor) -> bool:
    """At most twice torch's error on four paths, and a path's bits are those it has alone."""
    some = slice(0, 4)
    exact_k, exact_v = (x[some].double().repeat_interleave(HQ // HKV, 1) for x in (k, v))
    exact_q = step.q[0, some].double().unsqueeze(2)
    exact = F.scaled_dot_product_attention(exact_q, exact_k, exact_v)[:, :, 0]
    ours, theirs = attention(step)[0], torch_attention(step, k, v)[:, :, 0]
    close = (ours[some] - exact).abs().max() <= 2 * (theirs[some] - exact).abs().max()
    one = slice(5, 6)
    suffix = step.k_suffix[:, one], step.v_suffix[:, one], step.suffix_lens[:, one]
    alone, _ = pyttc.shared_prefix_attention(step.q[:, one], step.k_prefix, step.v_prefix, *suffix)
    return bool(close) and torch.equal(alone[0], ours[one])


def draw_is_right(step: Step, logits: torch.Tensor) -> bool:
    """The reference's tokens, torch's log-probabilities, and nothing outside the best TOP_K."""
    ours, reference = draw(step, logits), draw(step, logits, impl="reference")
    logprobs = F.log_softmax(logits.double() / TEMPERATURE, -1)
    expected = logprobs.gather(-1, ours.tokens[:, None])[:, 0]
    least = logprobs.topk(TOP_K).values[:, -1]
    return (
        bool(ours.valid.all())
        and torch.equal(ours.tokens, reference.tokens)
        and torch.allclose(ours.logprobs.double(), expected, rtol=0, atol=1e-4)
        and bool((expected >= least).all())
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.best_of_64")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    next_step = rotating(random_step, 2 * (P + N * S) * HKV * D * 2)
    step = next_step()
    k = step.expanded(step.k_prefix, step.k_suffix)
    v = step.expanded(step.v_prefix, step.v_suffix)
    head = torch.randn(V, HQ * D).bfloat16() * 0.1
    hidden = attention(step).reshape(N, HQ * D)
    logits = F.linear(hidden, head).float() * 10
    next_logits = rotating(logits.clone, logits.nbytes)

    stages: list[tuple[str, Callable[[], object], Callable[[], object], bool]] = [
        (
            "attention",
            lambda: torch_attention(step, k, v),
            lambda: attention(next_step()),
            attention_is_right(step, k, v),
        ),
        (
            "score and draw",
            lambda: torch_draw(next_logits()),
            lambda: draw(step, next_logits()),
            draw_is_right(step, logits),
        ),
    ]
    unit = "thread CPU time" if threads == 1 else "wall time"
    print(f"best of {N}, one decoding step on random tensors, {threads} thread(s), {unit}")
    print(f"{'':16}{'torch':>12}{'pyttc':>12}{'ratio':>9}   checked")
    whole = {"torch": 0.0, "pyttc": 0.0}
    for name, theirs, ours, right in stages:
        took = measure({"torch": theirs, "pyttc": ours})
        print_row(name, took["torch"].median, took["pyttc"].median, "yes" if right else "NO")
        for side in whole:
            whole[side] += took[side].median
    same = measure({"logits": lambda: F.linear(hidden, head)})["logits"].median
    print_row("logits", same, same, "torch's in both")
    print_row("whole step", whole["torch"] + same, whole["pyttc"] + same, "")
    drawn = draw(step, logits)
    best = int(drawn.logprobs.argmax())
    print(f"best path: {best}, token {int(drawn.tokens[best])}, log p {drawn.logprobs[best]:.3f}")
    return 0 if all(right for *_, right in stages) else 1


def print_row(name: str, theirs: float, ours: float, checked: str) -> None:
    times = f"{duration(theirs * 1e6):>12}{duration(ours * 1e6):>12}"
    print(f"{name:16}{times}{theirs / ours:8.1f}x   {checked}")


if __name__ == "__main__":
    sys.exit(main())
