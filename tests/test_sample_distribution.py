"""Draws have the distribution they should, at alpha = 1e-9, and planted bugs are noticed."""

from dataclasses import dataclass, field

import pytest
import torch
from scipy.stats import chi2

import pyttc
from pyttc.ops.philox import uniforms

from .rows import row
from .test_sample import inverse_cdf, kept_columns

ALPHA = 1e-9
DRAWS = 1 << 20


@dataclass
class Setting:
    """One row with its filters, and the probabilities draws from it must have."""

    logits: torch.Tensor
    filters: dict = field(default_factory=dict)

    def __post_init__(self):
        kept, weights = kept_columns(self.logits, **self.filters)
        self.p = weights * kept / (weights * kept).sum()


def chi_square(setting, tokens, order, least):
    """P(a statistic as large) for runs of columns in an order, of about `least` draws each."""
    expected = setting.p[order] * len(tokens)
    observed = torch.bincount(tokens, minlength=len(order))[order].double()
    if observed[expected == 0].any():
        return 0.0
    bins = (expected.cumsum(0) / least).floor().long()
    merged = torch.zeros(int(bins.max()) + 1, dtype=torch.float64)
    e, o = merged.index_add(0, bins, expected), merged.index_add(0, bins, observed)
    thin = e < least / 2
    if thin.any() and not thin.all():
        e, o = (torch.cat([x[~thin], x[thin].sum()[None]]) for x in (e, o))
    e, o = e[e > 1], o[e > 1]
    return float(chi2.sf(((o - e) ** 2 / e).sum(), max(1, len(e) - 1)))


def score(setting, tokens):
    """P(a mean logit of the draws as far off): smooth drift that bins do not see."""
    x = setting.logits.double()
    x = torch.where(setting.p > 0, x, 0)
    mean = (setting.p * x).sum()
    variance = (setting.p * (x - mean) ** 2).sum()
    if variance == 0:
        return 1.0
    z = (x[tokens].mean() - mean) / (variance / len(tokens)).sqrt()
    return float(chi2.sf(z**2, 1))


def rejected(setting, tokens):
    """Fine bins over columns of like probability, coarse ones along the row, and the mean logit."""
    by_index = torch.arange(len(setting.p))
    return ALPHA > min(
        chi_square(setting, tokens, setting.p.argsort(descending=True), 20),
        chi_square(setting, tokens, by_index, len(tokens) / 256),
        score(setting, tokens),
    )


def draw(setting, n=DRAWS, logits=None, path_ids=None, positions=None, **filters):
    logits = setting.logits if logits is None else logits
    return pyttc.sample(
        logits.expand(n, -1),
        seed=11,
        path_ids=torch.arange(n) if path_ids is None else path_ids,
        positions=torch.full((n,), 2) if positions is None else positions,
        **{**setting.filters, **filters},
    ).tokens


SETTINGS = [
    Setting(row(kind, v, seed=v), filters)
    for v in (111, 32000, 128256)
    for kind in ("normal", "flat", "bfloat16")
    for filters in ({}, {"temperature": 0.7})
] + [
    Setting(row("normal", v, seed=v), filters)
    for v in (111, 32000, 128256)
    for filters in ({"top_k": 40}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 60, "top_p": 0.7})
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{len(s.logits)}-{s.filters}")
def test_draws_have_the_distribution_they_should(setting):
    assert not rejected(setting, draw(setting))


def test_neighbouring_paths_positions_and_draws_are_independent():
    n = 1 << 18
    ids = torch.arange(n)
    streams = [
        uniforms(s, ids + i, torch.full((n,), p))
        for s, i, p in ((0, 0, 0), (1, 0, 0), (0, n, 0), (0, 0, 1))
    ]
    streams.append(uniforms(0, ids, torch.zeros(n, dtype=torch.long), draw=1))
    streams.append(uniforms(0, torch.zeros(n, dtype=torch.long), ids))
    for a, first in enumerate(streams):
        assert abs(first.mean() - 0.5) < 6.2 / (12 * n) ** 0.5
        for second in streams[a + 1 :] + [first.roll(1)]:
            correlation = ((first - 0.5) * (second - 0.5)).mean() * 12
            assert abs(correlation) < 6.2 / n**0.5


# Planted bugs: each must be rejected by the tests above.

NORMAL = {v: row("normal", v, seed=v) for v in (111, 32000, 128256)}


def without(logits, columns):
    logits = logits.clone()
    logits[columns] = -torch.inf
    return logits


def u_of(n=DRAWS):
    return uniforms(11, torch.arange(n), torch.full((n,), 2))


def biased(logits):
    signs = torch.randint(0, 2, logits.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return logits + 0.1 * signs


MUTANTS = {
    "temperature off by 2 %": lambda v: (
        Setting(NORMAL[v]),
        lambda s: draw(s, temperature=1.02),
    ),
    "the last 1 % of the vocabulary never drawn": lambda v: (
        Setting(NORMAL[v]),
        lambda s: draw(s, logits=without(NORMAL[v], slice(v - max(1, v // 100), v))),
    ),
    "the last block of a row never drawn": lambda v: (
        Setting(NORMAL[v]),
        lambda s: draw(s, logits=without(NORMAL[v], slice((v - 1) // 256 * 256 or v // 2, v))),
    ),
    "the lowest 5 % of the mass never drawn": lambda v: (
        Setting(NORMAL[v]),
        lambda s: draw(s, top_p=0.95),
    ),
    "every column's probability off by 10 %": lambda v: (
        Setting(NORMAL[v]),
        lambda s: draw(s, logits=biased(NORMAL[v])),
    ),
    "a neighbour's seed, for groups of eight paths": lambda v: (
        Setting(NORMAL[v]),
        lambda s: draw(s, path_ids=torch.arange(DRAWS) // 8),
    ),
    "the path left out of the counter": lambda v: (
        Setting(NORMAL[v]),
        lambda s: draw(s, path_ids=torch.zeros(DRAWS, dtype=torch.long)),
    ),
    "min_p ignored": lambda v: (
        Setting(NORMAL[v], {"min_p": 0.05}),
        lambda s: draw(s, min_p=0.0),
    ),
    "top_p one column too long": lambda v: (
        Setting(NORMAL[v], {"top_p": 0.2, "top_k": 60}),
        lambda s: draw(s, top_p=1.0, top_k=int((s.p > 0).sum()) + 1),
    ),
    "top_p one column short": lambda v: (
        Setting(NORMAL[v], {"top_p": 0.2, "top_k": 60}),
        lambda s: draw(s, top_p=1.0, top_k=int((s.p > 0).sum()) - 1),
    ),
    "top_k off by one": lambda v: (
        Setting(NORMAL[v], {"top_k": 40}),
        lambda s: draw(s, top_k=41),
    ),
    "a column too far": lambda v: (
        Setting(NORMAL[v]),
        lambda s: (draw(s) + 1).clamp_max(v - 1),
    ),
    "uniform numbers of 12 bits": lambda v: (
        Setting(NORMAL[v]),
        lambda s: inverse_cdf(s.p, (u_of() * 4096).floor() / 4096),
    ),
    "uniform numbers squared a little": lambda v: (
        Setting(NORMAL[v]),
        lambda s: inverse_cdf(s.p, u_of() ** 1.02),
    ),
}


@pytest.mark.parametrize("v", [111, 32000, 128256])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_rejected(mutant, v):
    setting, tokens = MUTANTS[mutant](v)
    assert rejected(setting, tokens(setting))
