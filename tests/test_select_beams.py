"""select_beams against a sort of all children in Python, exactly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttc import select_beams

from .common import EXAMPLES, same, spread, threads

INF, NAN = float("inf"), float("nan")
checked = settings(max_examples=EXAMPLES, derandomize=True)


def call(rows, k, groups, width, seed=0, bonus=None, penalty=0.0, coarse=True, index=torch.int64):
    """Scores on a coarse grid (many ties), some NaN or infinite, some tokens -1, some tokens twice."""
    make = torch.Generator().manual_seed(seed)

    def values(*shape):
        x = torch.randn(shape, generator=make) * 2
        x = x.round() / 2 if coarse else x
        for special in (NAN, INF, -INF):
            x[torch.rand(shape, generator=make) < 0.03] = special
        return x

    scores, logprobs = values(rows), values(rows, k)
    tokens = torch.randint(-1, 2 * k + 1, (rows, k), generator=make).to(index)
    kwargs = {"num_groups": groups}
    if bonus:
        kwargs["bonus"] = values(rows) if bonus == "row" else values(rows, k)
    if penalty:
        kwargs["length"] = torch.randint(1, 6000, (rows,), generator=make).to(index)
        kwargs["length_penalty"] = penalty
    group = torch.randint(0, max(groups, 1), (rows,), generator=make).to(index)
    return (scores, logprobs, tokens, group, width), kwargs


def sample_inputs():
    shapes = [
        (12, 5, 3, 4),
        (1, 1, 1, 1),
        (30, 70, 4, 200),
        (7, 1, 9, 2),
        (0, 4, 2, 3),
        (5, 0, 2, 3),
    ]
    calls = [call(*s, bonus=b) for s in shapes for b in (None, "row", "child")]
    calls += [call(9, 6, 3, 4, penalty=p, index=torch.int32) for p in (0.6, 1.0, -1.0, 2.0)]
    (scores, logprobs, tokens, groups, width), kwargs = call(8, 9, 3, 4, bonus="child")
    strided = (scores[:, None].expand(8, 2)[:, 1], spread(logprobs), spread(tokens), groups, width)
    calls.append((strided, {"bonus": spread(kwargs["bonus"]), "num_groups": 3}))
    one = (spread(t[:, :1].contiguous(), last=2) for t in (logprobs, tokens))
    calls.append(((scores, *one, groups, width), {}))
    calls.append(((scores, logprobs, tokens, groups, width), {}))
    calls.append(((scores, logprobs, tokens, groups, width), {"impl": "native"}))
    exact = (scores.double(), logprobs.double(), tokens, groups, width)
    calls.append((exact, {"impl": "reference", "length": groups + 1, "length_penalty": 0.5}))
    return calls


def invalid_calls():
    (s, lp, t, g, width), kwargs = call(6, 4, 3, 2, bonus="child", penalty=1.0)
    bonus, length = kwargs["bonus"], kwargs["length"]
    zero = length.clone()
    zero[5] = 0
    return [
        ((s.half(), lp, t, g, width), {}, "scores"),
        ((s[:, None], lp, t, g, width), {}, "scores"),
        ((s, lp.double(), t, g, width), {}, "logprobs"),
        ((s, lp[:5], t, g, width), {}, "logprobs"),
        ((s, lp[0], t, g, width), {}, "logprobs"),
        ((s, spread(lp, last=2), t, g, width), {}, "logprobs"),
        ((s, lp[:, ::2], t[:, ::2], g, width), {}, "logprobs"),
        ((s, lp, t.float(), g, width), {}, "tokens"),
        ((s, lp, t[:, :3], g, width), {}, "tokens"),
        ((s, lp, spread(t, last=2), g, width), {}, "tokens"),
        ((s, lp, t.to("meta"), g, width), {}, "tokens"),
        ((s, lp, t, g.bool(), width), {}, "groups"),
        ((s, lp, t, g[:5], width), {}, "groups"),
        ((s, lp, t, g - 1, width), {"num_groups": 3}, "groups"),
        ((s, lp, t, g + 1, width), {"num_groups": 3}, "groups"),
        ((s, lp, t, g * 0 + 6, width), {}, "groups"),
        ((s, lp, t, g, width), {"num_groups": 0}, "groups"),
        ((s, lp, t, g, 0), {}, "width"),
        ((s, lp, t, g, -3), {}, "width"),
        ((s, lp, t, g, 2.5), {}, "width"),
        ((s, lp, t, g, width), {"num_groups": -1}, "num_groups"),
        ((s, lp, t, g, width), {"bonus": bonus.double()}, "bonus"),
        ((s, lp, t, g, width), {"bonus": bonus[:, :3]}, "bonus"),
        ((s, lp, t, g, width), {"bonus": bonus[None]}, "bonus"),
        ((s, lp, t, g, width), {"bonus": bonus[:, :1].expand(6, 4)}, "bonus"),
        ((s, lp, t, g, width), {"bonus": bonus.to("meta")}, "bonus"),
        ((s, lp, t, g, width), {"length_penalty": 1.0}, "length"),
        ((s, lp, t, g, width), {"length": zero, "length_penalty": 1.0}, "length"),
        ((s, lp, t, g, width), {"length": zero}, "length"),
        ((s, lp, t, g, width), {"length": length.float()}, "length"),
        ((s, lp, t, g, width), {"length": length[:3]}, "length"),
        ((s, lp, t, g, width), {"length": length.to("meta")}, "length"),
        ((s, lp, t, g, width), {"length": length, "length_penalty": NAN}, "length_penalty"),
        ((s, lp, t, g, width), {"length": length, "length_penalty": -INF}, "length_penalty"),
        ((s, lp, t, g, width), {"length": length, "length_penalty": "long"}, "length_penalty"),
    ]


def by_sort(scores, logprobs, tokens, groups, width, *, bonus=None, length=None, length_penalty=0.0,
            num_groups=None):  # fmt: skip
    real = np.float64 if scores.dtype == torch.float64 else np.float32
    count = len(scores) if num_groups is None else num_groups
    children = [[] for _ in range(count)]
    with np.errstate(all="ignore"):
        for r in range(len(scores)):
            for j in range(logprobs.shape[1]):
                score = real(scores[r].item()) + real(logprobs[r, j].item())
                key = score
                if bonus is not None:
                    key = key + real((bonus[r] if bonus.ndim == 1 else bonus[r, j]).item())
                if length is not None and length_penalty != 0:
                    key = key / real(math.pow(length[r].item(), length_penalty))
                if tokens[r, j] >= 0 and np.isfinite(key):
                    child = (-key, r, tokens[r, j].item(), j, score)
                    children[groups[r]].append(child)
    shape = (count, width)
    parents, best = (torch.full(shape, -1) for _ in range(2))
    best_scores = torch.full(shape, -INF, dtype=scores.dtype)
    for g, group in enumerate(children):
        for i, (_, r, token, _, score) in enumerate(sorted(group)[:width]):
            parents[g, i], best[g, i], best_scores[g, i] = r, token, float(score)
    return parents, best, best_scores


def equal(a, b):
    return all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_samples(impl):
    for args, kwargs in sample_inputs():
        kwargs = {"impl": impl} | kwargs
        result = select_beams(*args, **kwargs)
        del kwargs["impl"]
        assert equal(result, by_sort(*args, **kwargs))


def test_a_case_worked_by_hand():
    scores = torch.tensor([-1.0, -2.0, -1.0, -9.0])
    logprobs = torch.tensor([[-1.0, -3.0], [0.0, -2.0], [-1.0, -1.0], [NAN, INF]])
    tokens = torch.tensor([[7, 5], [4, 6], [9, 8], [0, 1]])
    groups = torch.tensor([0, 0, 0, 1])
    parents, best, best_scores = select_beams(scores, logprobs, tokens, groups, 5, num_groups=3)
    assert parents.tolist() == [[0, 1, 2, 2, 0], [-1] * 5, [-1] * 5]
    assert best.tolist() == [[7, 4, 8, 9, 5], [-1] * 5, [-1] * 5]
    assert best_scores.tolist() == [[-2.0, -2.0, -2.0, -2.0, -4.0], [-INF] * 5, [-INF] * 5]


def test_bonus_and_penalty_order_but_do_not_count():
    args = (torch.tensor([-4.0, -6.0]), torch.zeros(2, 1), torch.tensor([[1], [2]]))
    group = torch.zeros(2, dtype=torch.int64)
    length = torch.tensor([2, 6])

    def first(**kwargs):
        parents, _, scores = select_beams(*args, group, 1, num_groups=1, **kwargs)
        return parents.item(), scores.item()

    assert first() == (0, -4.0)
    assert first(length=length) == (0, -4.0)
    assert first(length=length, length_penalty=1.0) == (1, -6.0)
    assert first(bonus=torch.tensor([0.0, 3.0])) == (1, -6.0)
    assert first(bonus=torch.tensor([[2.0], [3.0]])) == (0, -4.0)


@checked
@given(
    st.integers(0, 2**30),
    st.integers(0, 12),
    st.integers(0, 140),
    st.integers(1, 5),
    st.integers(1, 300),
    st.sampled_from([None, "row", "child"]),
    st.sampled_from([0.0, 0.6, 1.0, 2.0, -0.5]),
    st.booleans(),
)
def test_native_is_the_reference(seed, rows, k, groups, width, bonus, penalty, coarse):
    args, kwargs = call(rows, k, groups, width, seed, bonus, penalty, coarse)
    assert equal(select_beams(*args, **kwargs), select_beams(*args, **kwargs, impl="reference"))


@checked
@given(st.integers(0, 2**30), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_strides_do_not_show(seed, rows, k, width):
    args, kwargs = call(rows, k, 3, width, seed, "child", 0.7)
    scores, logprobs, tokens, groups, _ = args
    column = scores[:, None].repeat(1, 2)[:, 0]
    bonus, length = spread(kwargs["bonus"]), kwargs["length"][:, None].repeat(1, 3)[:, 1]
    odd = (column, spread(logprobs), spread(tokens), groups[:, None].repeat(1, 2)[:, 0], width)
    kwargs_odd = kwargs | {"bonus": bonus, "length": length}
    assert equal(select_beams(*args, **kwargs), select_beams(*odd, **kwargs_odd))


@checked
@given(st.integers(0, 2**30), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_other_groups_do_not_show(seed, rows, k, width):
    (scores, logprobs, tokens, groups, _), kwargs = call(rows, k, 3, width, seed, "row", 0.7)
    together = select_beams(scores, logprobs, tokens, groups, width, **kwargs)
    for g in range(3):
        mine = (groups == g).nonzero().flatten()
        args = (scores[mine], logprobs[mine], tokens[mine], groups[mine] * 0, width)
        own = {"bonus": kwargs["bonus"][mine], "length": kwargs["length"][mine]}
        parents, best, best_scores = select_beams(*args, **own, length_penalty=0.7, num_groups=1)
        if len(mine):
            parents = torch.where(parents >= 0, mine[parents.clamp(min=0)], -1)
        assert equal((parents[0], best[0], best_scores[0]), [t[g] for t in together])


@checked
@given(st.integers(0, 2**30), st.integers(2, 4), st.sampled_from([1, 40]), st.integers(1, 3))
def test_threads_do_not_show(seed, n, width, groups):
    args, kwargs = call(90, 400, groups, width, seed, "child")  # more than one work item a group
    with threads(1):
        one = select_beams(*args, **kwargs)
    with threads(n):
        assert equal(one, select_beams(*args, **kwargs))


@pytest.mark.parametrize("width", [1, 16, 1000, 60_000])
@pytest.mark.parametrize("order", ["rising", "falling", "constant", "random"])
def test_one_large_group(width, order):
    rows, k = 500, 200
    logprobs = {
        "rising": torch.arange(rows * k) * 1e-3,
        "falling": torch.arange(rows * k) * -1e-3,
        "constant": torch.zeros(rows * k),
        "random": torch.randn(rows * k, generator=torch.Generator().manual_seed(0)),
    }[order].view(rows, k)
    tokens = torch.arange(k).flip(0).expand(rows, k).contiguous()
    args = (torch.zeros(rows), logprobs, tokens, torch.zeros(rows, dtype=torch.int64), width)
    native = select_beams(*args, num_groups=1)
    assert equal(native, select_beams(*args, num_groups=1, impl="reference"))


def test_powers_are_those_of_libm():
    """4097 ** 2 lies between two floats: a double power off by one ulp would round the other way."""
    length = torch.arange(1, 6001)
    rows = len(length)
    args = (
        torch.full((rows,), -3.0e7),
        torch.zeros(rows, 1),
        torch.zeros(rows, 1, dtype=torch.int64),
        torch.zeros(rows, dtype=torch.int64),
        rows,
    )
    for penalty in (2.0, 0.6, -1.3):
        kwargs = {"length": length, "length_penalty": penalty, "num_groups": 1}
        native = select_beams(*args, **kwargs)
        assert equal(native, select_beams(*args, **kwargs, impl="reference"))
        assert equal(native, by_sort(*args, **kwargs))
