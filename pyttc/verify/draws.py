"""Draws: their random numbers, each token, and the distribution of many."""

from __future__ import annotations

from collections.abc import Callable

import torch

import pyttc
from pyttc import _C

from ..ops.philox import philox, uniforms
from ..ops.sample import keep
from . import Found, implementations

# The known answers of Random123 for Philox4x32-10: key, counter, result.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
ALPHA = 1e-9  # of a false alarm


def known_answers() -> Found:
    failures = []
    for (low, high), counter, words in KNOWN:
        key = high << 32 | low
        if tuple(_C.philox(key, *counter)) != words:
            failures.append(f"native: key {key:#x}")
        signed = key - 2**64 if key >= 2**63 else key
        if tuple(int(w) for w in philox(signed, counter)) != words:
            failures.append(f"reference: key {key:#x}")
    return 8 * len(KNOWN), failures


def exact(device: str, rows: int = 1500) -> Callable[[], Found]:
    """Tokens against the inverse CDF in float64 of the same uniform. Only one whose uniform lies
    within 1e-6 of a boundary may differ, and at most one in 10,000."""

    def run() -> Found:
        compared = 0
        failures: list[str] = []
        rng = torch.Generator().manual_seed(0)
        for impl in implementations("sample", device):
            for v, top_k, top_p in ((111, 0, 1.0), (5000, 50, 1.0), (1500, 0, 0.9)):
                logits = torch.randn(rows, v, generator=rng) * 2
                ids = torch.arange(rows)
                got = pyttc.sample(
                    logits.to(device),
                    seed=3,
                    path_ids=ids.to(device),
                    positions=ids.to(device),
                    top_k=top_k,
                    top_p=top_p,
                    impl=impl,
                ).tokens.cpu()
                one = torch.ones(rows, dtype=torch.float64)
                kept = keep(logits.double(), one, (one * top_k).long(), one * top_p, one * 0)
                cumulative = (logits.double().softmax(-1) * kept).cumsum(-1)
                cumulative /= cumulative[:, -1:].clone()
                u = uniforms(3, ids, ids)
                expected = (cumulative <= u[:, None]).sum(-1).clamp_max(v - 1)
                wrong = got != expected
                near = (cumulative - u[:, None]).abs().amin(-1) < 1e-6
                compared += rows
                if (wrong & ~near).any() or wrong.sum() > max(1, rows // 10_000):
                    failures.append(f"{impl}, V={v}: {int(wrong.sum())} of {rows} tokens differ")
        return compared, failures

    return run


def surprise(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """The chance of a chi-square statistic as large, thin columns taken together."""
    thin = expected < 20
    o = torch.cat([observed[~thin], observed[thin].sum()[None]])
    e = torch.cat([expected[~thin], expected[thin].sum()[None]])
    o, e = o[e > 0], e[e > 0]
    statistic = ((o - e) ** 2 / e).sum()
    return float(torch.special.gammaincc(torch.tensor((len(e) - 1) / 2.0).double(), statistic / 2))


def distribution(device: str, n: int = 1 << 19) -> Callable[[], Found]:
    """Many draws from one row: chi-square over columns, and the mean logit, which sees a smooth
    drift."""

    def run() -> Found:
        compared = 0
        failures: list[str] = []
        rng = torch.Generator().manual_seed(1)
        ids = torch.arange(n, device=device)
        for impl in implementations("sample", device):
            for v, temperature in ((111, 1.0), (32000, 0.8)):
                logits = torch.randn(v, generator=rng) * 2
                tokens = pyttc.sample(
                    logits.to(device).expand(n, v),
                    seed=9,
                    path_ids=ids,
                    positions=ids * 0,
                    temperature=temperature,
                    impl=impl,
                ).tokens.cpu()
                p, x = (logits.double() / temperature).softmax(0), logits.double()
                chance = surprise(torch.bincount(tokens, minlength=v).double(), p * n)
                mean = (p * x).sum()
                deviation = (p * (x - mean) ** 2).sum().sqrt() / n**0.5
                z = abs(float((x[tokens].mean() - mean) / deviation))
                compared += n
                if chance < ALPHA or z > 6.2:
                    failures.append(
                        f"{impl}, V={v}: chi-square {chance:.1g}, mean off by {z:.1f} sigma"
                    )
        return compared, failures

    return run
