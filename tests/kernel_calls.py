"""Calls of every op that a kernel may serve, chosen for what kernels get wrong."""

from typing import Any

import torch

from . import ops as declared
from .common import spread
from .forests import Forest
from .test_merge_states import states

INF, NAN = float("inf"), float("nan")
Call = tuple[tuple[Any, ...], dict[str, Any]]


def declared_calls(name: str) -> list[Call]:
    """The op's own sample inputs, as far as a kernel can serve them."""
    calls = []
    for args, kwargs in declared.sample_inputs(name):
        kwargs = {key: value for key, value in kwargs.items() if key != "impl"}
        if not any(t.dtype == torch.float64 for t in declared.tensors(args)):
            calls.append((args, kwargs))
    return calls


def tops(kind: str, shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Logits of one kind."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=make) * 3
    if kind == "ties":
        x = x.round().clamp(-2, 2)
    if kind == "constant":
        x.fill_(1.25)
    if kind == "zeros":
        x = torch.zeros(shape).copysign(x)
    if kind == "offset":
        x += 1e4 if dtype is torch.float32 else 300
    if kind == "holes":
        x[torch.rand(shape, generator=make) < 0.5] = -INF
    if kind == "few":
        x[:, 5:] = -INF
    if kind == "bad":
        x[0, shape[1] - 1], x[-1] = NAN, -INF
        if shape[0] > 2:
            x[1, 0] = INF
    return x.to(dtype)


def bits(shape: tuple[int, int], share: float, seed: int = 0) -> torch.Tensor:
    """A mask as xgrammar writes it, with about `share` of the columns allowed and nothing in row 1."""
    make = torch.Generator().manual_seed(seed)
    words = torch.zeros(shape[0], (shape[1] + 31) // 32, dtype=torch.int64)
    for bit in range(32):
        words |= (torch.rand(words.shape, generator=make) < share).long() << bit
    if shape[0] > 1:
        words[1] = 0
    return torch.where(words >= 2**31, words - 2**32, words).int()


def topk_score_calls() -> list[Call]:
    """Around the edges of a tile of 4,096 columns, and k that one tile must give alone."""
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    return [
        ((tops("random", (2, 8200), f32), 20), {}),
        ((tops("random", (1, 4097), bf16), 40), {"temperature": 0.7}),
        ((tops("ties", (1, 4096), f16), 7), {"temperature": 2.0}),
        ((tops("constant", (1, 5000), bf16), 300), {}),
        ((tops("constant", (1, 9000), f32), 16), {}),
        ((tops("zeros", (1, 4500), f32), 20), {}),
        ((tops("holes", (1, 4500), f32), 16), {"temperature": 1e-300}),
        ((tops("few", (1, 4200), f32), 12), {}),
        ((tops("bad", (3, 4200), f32), 3), {}),
        ((tops("offset", (1, 6000), f32), 5), {"temperature": 0.5}),
        ((tops("random", (1, 1500), f32), 1024), {}),
        ((tops("random", (1, 40000), bf16), 1024), {}),
        ((tops("ties", (1, 20000), f32), 700), {}),
        ((tops("random", (2, 1), f32), 1), {}),
        ((spread(tops("random", (3, 70), bf16)), 5), {}),
        ((tops("random", (1, 60), f32).expand(2, 60), 5), {}),
    ]


def sample_calls() -> list[Call]:
    """Every filter, alone and with others, where a tile's candidates suffice and where they do not."""
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16

    def call(logits: torch.Tensor, **kwargs: Any) -> Call:
        rows = logits.shape[0]
        make = torch.Generator().manual_seed(rows)
        kwargs.setdefault("seed", 2**62 + rows)
        kwargs["path_ids"] = torch.randint(0, 2**32, (rows,), generator=make)
        kwargs["positions"] = torch.randint(0, 2**20, (rows,), generator=make, dtype=torch.int32)
        return (logits,), kwargs

    x = tops("random", (2, 5000), f32)
    each = {
        "seed": torch.tensor([1, 2**62, 3, 4, 5, 6]),
        "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0, 1e-300, 1.0], dtype=torch.float64),
        "top_k": torch.tensor([0, 5, 0, 200, 3, 10**9]),
        "top_p": torch.tensor([1.0, 0.9, 0.5, 0.95, 1.0, 0.99], dtype=torch.float64),
        "min_p": torch.tensor([0.0, 0.0, 0.1, 1e-3, 0.0, 0.0], dtype=torch.float64),
    }
    return [
        call(x, topk=3),
        call(x, temperature=0.0),
        call(x, temperature=0.8, top_k=5),
        call(x, temperature=3.0, top_p=0.9),
        call(x, temperature=0.5, top_p=0.9),
        call(x, min_p=0.1),
        call(x[:1], min_p=1e-5),
        call(x, top_p=0.0),
        call(x[:1].to(bf16), top_k=2000, top_p=0.8),
        call(tops("ties", (1, 5000), f16), top_p=0.3),
        call(tops("ties", (1, 5000), bf16), top_k=300, top_p=0.8, min_p=0.02),
        call(x, mask=bits((2, 5000), 0.5), topk=4),
        call(x, mask=bits((2, 5000), 0.01), topk=4, top_k=20, top_p=0.7),
        call(tops("bad", (3, 4200), f32), top_p=0.9, topk=2),
        call(tops("few", (1, 4200), f32), top_k=20),
        call(tops("random", (6, 300), f32), topk=3, **each),
        call(tops("random", (6, 300), f32), mask=bits((6, 300), 0.5), **each),
        call(x[:1].expand(5, 5000)),
        call(x[:1].expand(3, 5000), top_k=9),
        call(tops("random", (2, 1), f32), topk=1),
        call(spread(tops("random", (4, 33), f16)), top_k=7),
        call(tops("random", (2, 1), f32), temperature=0.0),
        # More than are looked at first, and fewer than top_k.
        call(x, mask=bits((2, 5000), 0.36), temperature=3.0, top_k=2000, top_p=0.8),
    ]


def lm_head_topk_calls() -> list[Call]:
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16

    def head(rows: int, width: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        make = torch.Generator().manual_seed(rows)
        hidden = torch.randn(rows, width, generator=make)
        return (hidden / width**0.5).to(dtype), torch.randn(columns, width, generator=make).to(
            dtype
        )

    ids = {"path_ids": torch.arange(3), "positions": torch.full((3,), 7), "seed": 11}
    hidden, weight = head(3, 40, 300, bf16)
    hidden[1, 3] = NAN
    return [
        ((*head(2, 40, 200, f32), 5), {}),
        ((*head(70, 130, 70, bf16), 3), {"temperature": 0.7}),
        ((spread(head(2, 16, 150, f16)[0]), spread(head(2, 16, 150, f16)[1]), 1), {}),
        ((*head(3, 64, 300, bf16), 4), {**ids, "top_p": 0.9}),
        ((hidden, weight, 0), {**ids, "temperature": torch.tensor([0.5, 1.0, 0.0])}),
        ((*head(0, 16, 20, f32), 2), {}),
    ]


def dense(
    groups: int,
    paths: int,
    heads: tuple[int, int],
    d: int,
    prefix: int,
    suffix: int,
    dtype: torch.dtype,
    prefix_lens: list[int] | None = None,
) -> Call:
    """A call of shared_prefix_attention whose unused slots hold NaN."""
    make = torch.Generator().manual_seed(prefix + suffix)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=make).to(dtype)

    q, kv = random(groups, paths, heads[0], d) * 2, (heads[1], d)
    k_prefix, v_prefix = random(groups, prefix, *kv), random(groups, prefix, *kv)
    k_suffix, v_suffix = (random(groups, paths, suffix, *kv) for _ in range(2))
    lens = torch.randint(0, suffix + 1, (groups, paths), generator=make)
    past = torch.arange(suffix) >= lens[..., None]
    k_suffix[past], v_suffix[past] = NAN, NAN
    kwargs = {}
    if prefix_lens is not None:
        kwargs["prefix_lens"] = torch.tensor(prefix_lens, dtype=torch.int32)
        past = torch.arange(prefix) >= kwargs["prefix_lens"][:, None]
        k_prefix[past], v_prefix[past] = NAN, NAN
    return (q, k_prefix, v_prefix, k_suffix, v_suffix, lens), kwargs


def shared_prefix_attention_calls() -> list[Call]:
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    return [
        dense(2, 3, (4, 2), 16, 100, 70, f32),
        dense(1, 18, (8, 2), 64, 530, 30, bf16),
        dense(2, 2, (6, 2), 40, 600, 100, f16, [530, 17]),
        dense(1, 2, (1, 1), 16, 0, 5, f32),
        dense(1, 2, (7, 1), 80, 512, 0, bf16),
        dense(1, 2, (70, 1), 16, 530, 40, bf16),
        dense(2, 2, (20, 1), 16, 512, 20, f32, [512, 0]),
        dense(1, 1, (16, 1), 256, 64, 64, f16),
        dense(0, 2, (2, 1), 16, 3, 3, f32),
    ]


def prefix_tree_attention_calls() -> list[Call]:
    calls = []
    for seed, options in enumerate(
        [{}, {}, {}, {"window": 70}, {"softcap": 3.0}, {"window": 1, "softcap": 20.0, "scale": 0.3}]
    ):
        forest = Forest.draw(seed, nodes=6, paths=6, long=seed == 2)
        calls.append(((forest.q, *forest.paged((1, 4, 16, 256)[seed % 4])), options))
    return calls


def select_beams_calls() -> list[Call]:
    """More children than a block has memory for, keys that are all alike, tokens beyond 32 bits that are
    told apart by their last ones, and wide results."""
    make = torch.Generator().manual_seed(3)
    beams = []
    for rows, k, groups, width, levels in [
        (400, 70, 1, 300, 3),
        (300, 100, 2, 40, 1),
        (70, 33, 5, 500, 9),
        (3, 1030, 2, 1000, 2),
    ]:
        logprobs = torch.randint(0, levels, (rows, k), generator=make) / 4
        tokens = torch.randint(0, 5, (rows, k), generator=make) + (1 << 40)
        group = torch.randint(0, groups, (rows,), generator=make)
        kwargs = {"num_groups": groups, "length": group + 2, "length_penalty": 1.5}
        beams.append(((torch.zeros(rows), logprobs, tokens, group, width), kwargs))
    return declared_calls("select_beams") + beams


def merge_states_calls() -> list[Call]:
    """Rows that are one run and several, in more dimensions than a kernel unfolds, and longer than a warp."""
    bf16 = torch.bfloat16
    a, lse_a, b, lse_b = states((6, 4, 64), bf16)
    apart = (torch.empty(7, 5, 72, dtype=bf16)[:6, :4, :64].copy_(t) for t in (a, b))
    turned, turned_lse = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (b, lse_b))
    merges = [
        (a, lse_a, turned, lse_b),
        (a, lse_a, b, turned_lse),
        (next(apart), lse_a, next(apart), lse_b),
        states((2, 3, 1, 2, 1, 2, 1, 3, 2, 24), bf16),
        tuple(spread(t) for t in states((2, 3, 1, 2, 1, 2, 1, 3, 2, 24), torch.float16)),
        states((3, 2056), bf16),
        states((2, 1100)),
        tuple(spread(t) for t in states((2, 700))),
    ]
    return declared_calls("merge_states") + [(args, {}) for args in merges]


def store_kv_calls() -> list[Call]:
    """More rows than look at each other: many for each slot, and most alone."""
    make = torch.Generator().manual_seed(0)
    many = []
    for rows, pool, index in [
        (1030, (3, 5, 1, 8), torch.int64),
        (1025, (90, 16, 2, 4), torch.int32),
    ]:
        k, v = torch.randn(2, rows, *pool[2:], generator=make)
        k_pages, v_pages = torch.full((2, *pool), NAN)
        slots = torch.randint(-1, pool[0] * pool[1], (rows, 3), generator=make).to(index)
        many.append(((k, v, k_pages, v_pages, slots[:, 1]), {}))
    return declared_calls("store_kv") + many


def copy_pages_calls() -> list[Call]:
    """A rotation of more pages than a block holds 16 bytes of."""
    n = 6400
    k_pages, v_pages = torch.arange(2.0 * n * 16).view(2, n, 1, 1, 16).short().view(torch.float16)
    around = torch.arange(n)
    return declared_calls("copy_pages") + [((k_pages, v_pages, around, around.roll(1)), {})]


def calls(name: str) -> list[Call]:
    own = globals().get(f"{name}_calls")
    return own() if own else declared_calls(name)
