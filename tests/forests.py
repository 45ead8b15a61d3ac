"""Forests of paths with known tokens, for the tests of both attention ops."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

import pyttc

HEADS = [(1, 1), (2, 2), (4, 2), (3, 1), (10, 2), (14, 2), (8, 1)]
DIMS = [16, 24, 40, 64, 80, 128, 256]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Around the edges of tiles of 64 and chunks of 1024 tokens.
LENGTHS = [0, 0, 1, 2, 7, 31, 63, 64, 65, 100, 128, 191, 300]
LONG = [1000, 1023, 1024, 1025, 1090, 2050]


@dataclass
class Forest:
    """Nodes with keys and values [tokens, Hkv, D], and paths with queries [N, Hq, D]."""

    parents: list[int]
    k: list[torch.Tensor]
    v: list[torch.Tensor]
    leaves: list[int]
    q: torch.Tensor

    @staticmethod
    def draw(
        seed: int,
        dtype: torch.dtype | None = None,
        *,
        nodes: int = 7,
        paths: int = 6,
        long: bool = False,
        heads: tuple[int, int] | None = None,
        dim: int | None = None,
    ) -> Forest:
        rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)
        dtype = dtype or rng.choice(DTYPES)
        hq, hkv = heads or rng.choice(HEADS)
        d = dim or rng.choice(DIMS)
        n = rng.randint(1, nodes)
        parents = [rng.randint(-1, i - 1) for i in range(n)]
        lengths = [rng.choice(LONG if long and rng.random() < 0.3 else LENGTHS) for _ in range(n)]
        k = [torch.randn(t, hkv, d, generator=gen).to(dtype) for t in lengths]
        v = [torch.randn(t, hkv, d, generator=gen).to(dtype) for t in lengths]
        leaves = [rng.randint(0, n - 1) for _ in range(rng.randint(1, paths))]
        q = torch.randn(len(leaves), hq, d, generator=gen).to(dtype) * 2
        return Forest(parents, k, v, leaves, q)

    def line(self, node: int) -> list[int]:
        """The nodes from the root to `node`."""
        nodes: list[int] = []
        while node >= 0:
            nodes.insert(0, node)
            node = self.parents[node]
        return nodes

    def tokens(self, path: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a path, in order."""
        line = self.line(self.leaves[path])
        return torch.cat([self.k[i] for i in line]), torch.cat([self.v[i] for i in line])

    def unshared(self) -> Forest:
        """Every path a root of its own."""
        k, v = zip(*(self.tokens(i) for i in range(len(self.leaves))), strict=True)
        n = len(self.leaves)
        return Forest([-1] * n, list(k), list(v), list(range(n)), self.q)

    def cut(self, seed: int, pieces: int = 4) -> Forest:
        """Every node as a chain of up to `pieces` nodes, some of them empty, in shuffled order."""
        rng = random.Random(seed)
        parents: list[int] = []
        k: list[torch.Tensor] = []
        v: list[torch.Tensor] = []
        last: list[int] = []
        for i, parent in enumerate(self.parents):
            above = last[parent] if parent >= 0 else -1
            length = self.k[i].shape[0]
            ends = sorted(rng.randint(0, length) for _ in range(rng.randint(0, pieces - 1)))
            for begin, end in zip([0, *ends], [*ends, length], strict=True):
                parents.append(above)
                k.append(self.k[i][begin:end])
                v.append(self.v[i][begin:end])
                above = len(parents) - 1
            last.append(above)
        order = list(range(len(parents)))
        rng.shuffle(order)
        at = {old: new for new, old in enumerate(order)}
        return Forest(
            [at[parents[i]] if parents[i] >= 0 else -1 for i in order],
            [k[i] for i in order],
            [v[i] for i in order],
            [at[last[leaf]] for leaf in self.leaves],
            self.q,
        )

    def pick(self, paths: list[int]) -> Forest:
        return replace(self, leaves=[self.leaves[i] for i in paths], q=self.q[paths])

    def paged(
        self, page_size: int, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, pyttc.PrefixTree]:
        """(k_pages, v_pages, tree): pages in random order, every slot without a token NaN."""
        rng = random.Random(seed)
        lengths = [t.shape[0] for t in self.k]
        needed = [-(-t // page_size) + rng.randint(0, 1) for t in lengths]
        pool = list(range(sum(needed) + 2))
        rng.shuffle(pool)
        pages = [[pool.pop() for _ in range(count)] for count in needed]
        shape = (sum(needed) + 2, page_size, *self.k[0].shape[1:])
        k_pages = torch.full(shape, torch.nan, dtype=self.q.dtype)
        v_pages = torch.full(shape, torch.nan, dtype=self.q.dtype)
        for i, ids in enumerate(pages):
            for j, page in enumerate(ids):
                part = self.k[i][j * page_size : (j + 1) * page_size]
                k_pages[page, : part.shape[0]] = part
                v_pages[page, : part.shape[0]] = self.v[i][j * page_size : (j + 1) * page_size]
        return (
            k_pages,
            v_pages,
            pyttc.PrefixTree(self.parents, pages, lengths, self.leaves, page_size),
        )

    def run(self, page_size: int = 16, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        return pyttc.prefix_tree_attention(self.q, *self.paged(page_size), **options)

    def exact(self, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        """The reference in float64."""
        wide = replace(
            self,
            k=[t.double() for t in self.k],
            v=[t.double() for t in self.v],
            q=self.q.double(),
        )
        return wide.run(impl="reference", **options)

    def torchs(
        self,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `attend` below, path by path."""
        out, lse = torch.zeros_like(self.q), torch.full(self.q.shape[:2], -torch.inf)
        for i, q in enumerate(self.q):
            k, v = (t if window is None else t[-window:] for t in self.tokens(i))
            if len(k):
                out[i], lse[i] = attend(q, k, v, scale, softcap)
        return out, lse


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One query [Hq, D] as torch's own kernels take it in the tensors' dtype: sums in float32,
    weights against the largest rounded to the dtype before they meet the values."""
    group = q.shape[0] // k.shape[1]
    q, keys, values = q.float(), *(t.float().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("hd,thd->ht", q, keys) * (q.shape[1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.exp(scores - scores.amax(1, keepdim=True))
    out = torch.einsum("ht,thd->hd", weights.to(v.dtype).float(), values)
    return (out / weights.sum(1, keepdim=True)).to(v.dtype), torch.logsumexp(scores, 1)


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    """Equal to the bit, NaN included."""
    return all(
        x.shape == y.shape and torch.equal(x.nan_to_num(12345.0), y.nan_to_num(12345.0))
        for x, y in zip(a, b, strict=True)
    )


def assert_close(
    got: tuple[torch.Tensor, torch.Tensor],
    same_dtype: tuple[torch.Tensor, torch.Tensor],
    exact: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """At most twice the error of torch in the same dtype; and a few float32 roundings, since a
    small case may round better by luck. A weight errs by as much as its score, whose size shows in
    the log-sum-exp: with one row and two tokens to choose from, all errors are the same draw."""
    scores = exact[1].nan_to_num(neginf=0.0).flatten().abs()
    factors = 1 + max(scores.tolist(), default=0.0), 1.0
    for x, y, z, factor in zip(got, same_dtype, exact, factors, strict=True):
        assert torch.equal(torch.isinf(x), torch.isinf(z)), "empty paths differ"
        x, y, z = (t.double().masked_fill(torch.isinf(z), 0) for t in (x, y, z))
        assert not x.isnan().any()
        error, allowed, scale = (
            t.abs().max().item() if z.numel() else 0.0 for t in (x - z, y - z, z)
        )
        assert error <= 2 * allowed + 8 * torch.finfo(torch.float32).eps * scale * factor
