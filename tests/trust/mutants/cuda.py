"""Mutants of csrc/cuda, for the emulation on the CPU (tests/emulation)."""

from . import Mutant

EMULATED = "tests/test_cuda_emulated.py -k reference"

MUTANTS = [
    Mutant(path, bug, old, new, EMULATED)
    for path, bug, old, new in [
        (
            "csrc/cuda/merge_states.cu",
            "the second state at the strides of the first",
            "row_offset(p, p.out_b_stride, row)",
            "row_offset(p, p.out_a_stride, row)",
        ),
        (
            "csrc/cuda/merge_states.cu",
            "what an empty state holds is read",
            "w.a == 0.f ? 0.f : w.a * widen(a[i])",
            "w.a * widen(a[i])",
        ),
        (
            "csrc/cuda/store_kv.cu",
            "the row behind is not asked for the same slot",
            "for (int64_t i = row + 1 + threadIdx.x;",
            "for (int64_t i = row + 2 + threadIdx.x;",
        ),
        (
            "csrc/cuda/store_kv.cu",
            "an offset of 32 bits",
            "char* to = r.to + page * r.page + offset * r.slot;",
            "char* to = r.to + static_cast<int>(page * r.page) + offset * r.slot;",
        ),
        (
            "csrc/cuda/copy_pages.cu",
            "the barrier between reading and writing is gone",
            "  __syncthreads();\n",
            "",
        ),
        (
            "csrc/cuda/copy_pages.cu",
            "the first layer only",
            "pool.data + blockIdx.y * pool.layer",
            "pool.data",
        ),
        (
            "csrc/cuda/select.cuh",
            "-0 and +0 are not equal",
            "__float_as_uint(x + 0.f)",
            "__float_as_uint(x)",
        ),
        (
            "csrc/cuda/select.cuh",
            "the histogram is not cleared after a digit",
            "    for (int i = 0; i < 8; ++i) s.histogram[lane * 8 + i] = 0;\n",
            "",
        ),
        (
            "csrc/cuda/select.cuh",
            "the bound of the row before is kept",
            "  if (t < kWords) s.bound[t] = 0;\n",
            "",
        ),
        (
            "csrc/cuda/choose.cuh",
            "the last of equal columns is left out",
            "(word == bound && column <= last)",
            "(word == bound && column < last)",
        ),
        (
            "csrc/cuda/choose.cuh",
            "the count of the row before is kept",
            "  if (t == 0) chosen.count = 0;\n  choose_from_groups",
            "  choose_from_groups",
        ),
        (
            "csrc/cuda/row_tiles.cuh",
            "columns past the row's end count as 0",
            "x[i] = column + i < t.columns ? widen(row[column + i]) : -INFINITY;",
            "x[i] = column + i < t.columns ? widen(row[column + i]) : 0.f;",
        ),
        (
            "csrc/cuda/row_tiles.cuh",
            "the barrier before the warps' maxima are read is gone",
            "  if (lane == 0) highs[warp] = high;\n  __syncthreads();\n",
            "  if (lane == 0) highs[warp] = high;\n",
        ),
        (
            "csrc/cuda/row_tiles.cuh",
            "sums of tiles are added without their maxima",
            "sum += s.sum * weight;",
            "sum += s.sum;",
        ),
        (
            "csrc/cuda/select_beams.cu",
            "the last child that reaches the bound is left out",
            "if (value > bound[w]) return;",
            "if (value >= bound[w]) return;",
        ),
        (
            "csrc/cuda/select_beams.cu",
            "the count of the group before is kept",
            "  if (t == 0) kept = 0;\n",
            "",
        ),
        (
            "csrc/cuda/select_beams.cu",
            "the barrier before a running sum is written is gone",
            "    __syncthreads();\n    sums[t] += before;",
            "    sums[t] += before;",
        ),
    ]
]
