"""The AMX kernel under both attention ops, on emulated tiles where there are none.

Here it runs tile by tile. Built with PYTTC_CFLAGS=-DPYTTC_EMULATE_AMX the package takes it for
every bfloat16 call, and the ops' own tests run on it whole.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pyttc.ops.shared_prefix_attention import reference

from .forests import assert_close
from .forests import attend as attend_in_torch

CSRC = Path(__file__).parent.parent / "csrc"
DRIVER = """
#include "attention_amx.cpp"
// One path of `tokens` tokens [tokens, dim] within one chunk, for query rows [rows, dim].
extern "C" void attend(const pyttc::bf16* q, const pyttc::bf16* k, const pyttc::bf16* v, int rows,
                       int tokens, int dim, const int* low, float scale, pyttc::bf16* out,
                       float* lse) {
  using namespace pyttc;
  const int64_t padded = (dim + 15) / 16 * 16;
  static float query[400 * 256], o[400 * 256], m[416], l[416], kt[64 * 256], vp[64 * 256];
  static int first[400];
  __builtin_memset(query, 0xff, sizeof query);
  __builtin_memset(vp, 0xff, sizeof vp);
  for (int r = 0; r < rows; ++r) {
    attention_amx.query(q + r * dim, dim, query + r * padded);
    m[r] = -kInf;
    l[r] = 0;
    for (int d = 0; d < padded; ++d) o[r * padded + d] = 0;
  }
  for (int tile = 0; tile * kTile < tokens; ++tile) {
    TileRows at;
    at.end = tokens - tile * kTile < kTile ? tokens - tile * kTile : kTile;
    at.begin = kTile;
    for (int r = 0; r < rows; ++r) {
      first[r] = low ? low[r] - tile * kTile : 0;
      first[r] = first[r] < 0 ? 0 : first[r] > kTile ? kTile : first[r];
      at.begin = first[r] < at.begin ? first[r] : at.begin;
    }
    if (at.begin >= at.end) continue;
    for (int t = 0; t < kTile; ++t) {
      const int there = t < at.begin || t >= at.end ? at.begin : t;
      at.k[t] = k + int64_t{tile * kTile + there} * dim;
      at.v[t] = v + int64_t{tile * kTile + there} * dim;
    }
    const TileRows next;
    Prefetch prefetch(next, dim * 2, attention_amx.prefetches(rows, dim));
    attention_amx.pack(at, rows, dim, padded, kt, vp, prefetch);
    attention_amx.rows({rows, dim, padded, query, kt, vp, &at, m, l, o, at.begin, at.end,
                        low ? first : nullptr, scale, 0.f},
                       prefetch);
  }
  for (int r = 0; r < rows; ++r) {
    const float one = 1, *from = o + r * padded;
    attention_amx.finish(&from, &one, 1, l[r], dim, out + r * dim);
    lse[r] = m[r] * 0x1.62e43p-1f + __builtin_logf(l[r]);
  }
}
"""


@pytest.fixture(scope="module")
def attend(tmp_path_factory):
    cpu = Path("/proc/cpuinfo")
    if not shutil.which("g++") or not cpu.exists() or "avx512_bf16" not in cpu.read_text():
        pytest.skip("needs g++ and AVX-512 with bfloat16")
    folder = tmp_path_factory.mktemp("amx")
    source, built = folder / "driver.cpp", folder / "driver.so"
    source.write_text(DRIVER)
    isa = [f"-m{name}" for name in ("avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512bw")]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-DPYTTC_EMULATE_AMX", "-ffp-contract=off"]
    include = [f"-I{CSRC}/cpu", f"-I{CSRC}/include"]
    command = ["g++", *flags, *isa, "-mavx512vl", "-mavx512bf16", *include, source, "-o", built]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(built)).attend
    pointer, number = ctypes.c_void_p, ctypes.c_int
    function.argtypes = [pointer] * 3 + [number] * 3 + [pointer, ctypes.c_float] + [pointer] * 2

    def run(q, k, v, low=None):
        rows, dim = q.shape
        out, lse = torch.full_like(q, torch.nan), torch.full((rows,), torch.nan)
        low = None if low is None else torch.tensor(low, dtype=torch.int32)
        function(
            *(t.data_ptr() for t in (q, k, v)), rows, k.shape[0], dim,
            None if low is None else low.data_ptr(), dim**-0.5, out.data_ptr(), lse.data_ptr(),
        )  # fmt: skip
        return out, lse

    return run


def draw(rows, tokens, dim):
    gen = torch.Generator().manual_seed(rows * tokens + dim)
    q, k, v = (torch.randn(n, dim, generator=gen).bfloat16() for n in (rows, tokens, tokens))
    return q * 2, k, v


def check(got, q, k, v):
    args = q[None, None], k[None, :, None], v[None, :, None]
    none = torch.empty(1, 1, 0, 1, q.shape[1])
    wide = (t.double() for t in (*args, none, none))
    out, lse = reference(*wide, torch.zeros(1, 1, dtype=torch.int32))
    assert_close(got, attend_in_torch(q, k[:, None], v[:, None]), (out[0, 0], lse[0, 0]))


SHAPES = [(1, 1, 16), (7, 64, 64), (3, 65, 24), (50, 130, 80), (17, 1000, 40), (400, 70, 256)]


@pytest.mark.parametrize(("rows", "tokens", "dim"), SHAPES)
def test_matches_float64(attend, rows, tokens, dim):
    q, k, v = draw(rows, tokens, dim)
    check(attend(q, k, v), q, k, v)


@pytest.mark.parametrize(("rows", "tokens", "dim"), SHAPES)
def test_bits_do_not_depend_on_other_rows(attend, rows, tokens, dim):
    q, k, v = draw(rows, tokens, dim)
    out, lse = attend(q, k, v)
    for i in {0, rows // 2, rows - 1}:
        alone, alone_lse = attend(q[i : i + 1], k, v)
        assert torch.equal(out[i], alone[0]) and lse[i] == alone_lse[0]


def test_windows_end_where_they_end(attend):
    """Rows with windows of their own: what lies before one may be NaN, and changes no bit."""
    low = [0, 0, 1, 31, 32, 33, 63, 64, 65, 66, 66, 95, 128, 139] * 2
    q, k, v = draw(len(low), 140, 72)
    out, lse = attend(q, k, v, low)
    for i, start in enumerate(low):
        before = torch.arange(140)[:, None] < start
        poisoned = (t.masked_fill(before, torch.nan) for t in (k, v))
        alone, alone_lse = attend(q[i : i + 1], *poisoned, [start])
        assert torch.equal(out[i], alone[0]) and lse[i] == alone_lse[0]
        check((alone, alone_lse), q[i : i + 1], k[start:], v[start:])


@pytest.mark.parametrize("start", [40, 41])  # values go in pairs of tokens
def test_a_value_one_row_may_not_see_does_not_reach_it(attend, start):
    low = [0] * 5 + [start] * 5
    q, k, v = draw(len(low), 64, 32)
    clean = attend(q, k, v, low)
    v[start - 1] = torch.nan
    out, lse = attend(q, k, v, low)
    assert out[:5].isnan().all() and torch.equal(out[5:], clean[0][5:])
    assert torch.equal(lse, clean[1])
