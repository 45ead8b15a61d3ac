"""The product under the engine's linear layers, _C.linear: right, and blind to other rows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear as torch_linear

from pyttc import _C
from tests.common import EXAMPLES, run_below, same, spread, threads

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1, 1), (1, 300, 70), (3, 5, 1000), (17, 257, 33), (64, 64, 64), (130, 70, 96)]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.full((x.shape[0], weight.shape[0]), torch.nan, dtype=x.dtype)
    _C.linear(x, weight, bias, out, torch.get_num_threads())
    return out


def inputs(
    rows: int, columns: int, width: int, dtype: torch.dtype, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (columns, width), (columns,))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_error_is_at_most_twice_torchs(
    rows: int, columns: int, width: int, dtype: torch.dtype, biased: bool
) -> None:
    x, weight, bias = inputs(rows, columns, width, dtype)
    given = (x, weight, bias) if biased else (x, weight)
    exact = torch_linear(*(t.double() for t in given))
    ours, theirs = ((f(*given) - exact).square().mean().sqrt() for f in (linear, torch_linear))
    assert ours <= 2 * theirs + 2**-24


@settings(max_examples=EXAMPLES, derandomize=True)
@given(
    st.sampled_from(DTYPES),
    st.integers(1, 140),
    st.integers(1, 200),
    st.integers(1, 150),
    st.integers(0, 999),
    st.data(),
)
def test_bits_of_a_row_do_not_depend_on_others(
    dtype: torch.dtype, rows: int, columns: int, width: int, seed: int, data: st.DataObject
) -> None:
    """Nor on order, threads, strides, or which columns are asked for."""
    x, weight, bias = inputs(rows, columns, width, dtype, seed)
    whole = linear(x, weight, bias)
    chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=20))
    with threads(data.draw(st.sampled_from([1, 2, 3]))):
        assert same(linear(spread(x[chosen]), weight, bias), whole[chosen])
    first = data.draw(st.integers(0, columns - 1))
    some = linear(x, spread(weight[first:]), bias[first:].contiguous())
    assert same(some, whole[:, first:].contiguous())


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_row(dtype: torch.dtype) -> None:
    x, weight, bias = inputs(9, 70, 40, dtype)
    clean = linear(x, weight, bias)
    x[4, 3], x[6, 0] = torch.nan, torch.inf
    got = linear(x, weight, bias)
    rest = [0, 1, 2, 3, 5, 7, 8]
    assert same(got[rest], clean[rest])
    assert got[4].isnan().all() and not got[6].isfinite().any()


def test_no_rows_are_no_work() -> None:
    assert linear(torch.empty(0, 8), torch.empty(3, 8)).shape == (0, 3)


def test_what_does_not_fit_is_refused_and_nothing_written() -> None:
    x, weight, bias = inputs(4, 6, 8, torch.float32)
    out = torch.full((4, 6), 7.0)
    for wrong in (
        (x[:, :7], weight, bias, out),
        (x, weight[:5], bias, out),
        (x, weight, bias[:5], out),
        (x, weight, bias, out[:3]),
        (x, weight.bfloat16(), bias, out),
        (x, weight, bias, out.double()),
        (x.t().contiguous().t(), weight, bias, out),
        (x[0], weight, bias, out[0]),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            _C.linear(*wrong, 1)
    assert (out == 7).all()


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_other_instruction_sets(level: str) -> None:
    run_below(level, __file__, "error or bits or nan")


def test_with_fewer_threads_than_asked_for() -> None:
    """A team of threads may be smaller than was asked for: then those there are do all items."""
    code = (
        "import torch; from tests.test_linear import inputs, linear, same, threads\n"
        "x, weight, bias = inputs(5, 700, 40, torch.float32)\n"
        "with threads(4): several = linear(x, weight, bias)\n"
        "with threads(1): assert same(several, linear(x, weight, bias))"
    )
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
