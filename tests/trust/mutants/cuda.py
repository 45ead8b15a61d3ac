"""Mutants of csrc/cuda, for the emulation on the CPU (tests/emulation)."""

from . import Mutant
from .barriers import without_barriers

EMULATED = "tests/test_cuda_emulated.py -k reference"
RACES = "tests/test_cuda_emulated.py -k races"

MUTANTS = [
    Mutant(path, bug, old, new, EMULATED)
    for path, bug, old, new in [
        (
            "csrc/cuda/merge_states.cu",
            "the second state at the strides of the first",
            "at.out_b += i * p.stride[k].out_b;",
            "at.out_b += i * p.stride[k].out_a;",
        ),
        (
            "csrc/cuda/merge_states.cu",
            "what an empty state holds is read",
            "w.a == 0.f ? 0.f : __fmul_rn(w.a,",
            "__fmul_rn(w.a,",
        ),
        (
            "csrc/cuda/merge_states.cu",
            "dimensions are one run in the first state, and so in all",
            "s.out_a == last.out_a * n && s.out_b == last.out_b * n &&",
            "s.out_a == last.out_a * n &&",
        ),
        (
            "csrc/cuda/merge_states.cu",
            "a row's last pieces are nobody's",
            "<< p.log_threads < pieces) ++p.log_threads;",
            "<< p.log_threads < pieces / 2) ++p.log_threads;",
        ),
        (
            "csrc/cuda/store_kv.cu",
            "the row behind is not asked for the same slot",
            "for (int64_t i = row + 1 + threadIdx.x;",
            "for (int64_t i = row + 2 + threadIdx.x;",
        ),
        (
            "csrc/cuda/store_kv.cu",
            "of many rows for a slot any stays",
            "if (slot >= 0 && load_relaxed(&p.last[slot]) < row)",
            "if (row < 0)",
        ),
        (
            "csrc/cuda/store_kv.cu",
            "a row of no slot is looked up",
            "return slot < p.pool_slots ? slot : -1;",
            "return slot;",
        ),
        (
            "csrc/cuda/store_kv.cu",
            "an offset of 32 bits",
            "char* to = r.to + page * r.page + offset * r.slot;",
            "char* to = r.to + static_cast<int>(page * r.page) + offset * r.slot;",
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
            "chosen.count = chosen.group_count = 0;",
            "chosen.group_count = 0;",
        ),
        (
            "csrc/cuda/choose.cuh",
            "groups of a warp's later reads are those of its first",
            "chosen.groups[first + i]",
            "chosen.groups[first]",
        ),
        (
            "csrc/cuda/choose.cuh",
            "the last run is sorted both ways",
            "for (int run = 2; run <= size; run *= 2) {",
            "for (int run = 2; run < size; run *= 2) {",
        ),
        (
            "csrc/cuda/choose.cuh",
            "the best columns go to the first of the draws of a row",
            "for (int64_t copy = 0; copy < copies; ++copy) {",
            "for (int64_t copy = 0; copy < 1; ++copy) {",
        ),
        (
            "csrc/cuda/select.cuh",
            "weights that meet lose their upper half",
            "(static_cast<unsigned long long>(high) << kHalf) + low",
            "static_cast<unsigned long long>(low)",
        ),
        (
            "csrc/cuda/weights.cuh",
            "sums of other warps are left out",
            "for (int i = 0; i < warp; ++i) before += s.warps[i];",
            "for (int i = 1; i < warp; ++i) before += s.warps[i];",
        ),
        (
            "csrc/cuda/sample.cu",
            "of a lane's masses only the first is looked at",
            "i < min(count, (at + 1) * each); ++i) {",
            "i < min(count, at * each + 1); ++i) {",
        ),
        (
            "csrc/cuda/sample.cu",
            "the target is not told in the units of its tile",
            "target /= exp2(log2_of(largest, totals.high, scale));",
            "",
        ),
        (
            "csrc/cuda/sample.cu",
            "a list that may lack columns is taken for whole",
            "if (filters.top_k) return false;",
            "if (filters.top_k) return true;",
        ),
        (
            "csrc/cuda/sample.cu",
            "what filters keep is drawn in the order of value",
            "list[i] = uint64_t{static_cast<uint32_t>(list[i])} << 32 | static_cast<uint32_t>(i);",
            "list[i] = uint64_t{static_cast<uint32_t>(i)} << 32 | static_cast<uint32_t>(i);",
        ),
        (
            "csrc/cuda/row_tiles.cuh",
            "columns past the row's end count as 0",
            "narrow(-INFINITY, x);",
            "narrow(0.f, x);",
        ),
        (
            "csrc/cuda/row_tiles.cuh",
            "vectors are read from where they are not",
            "vectors[place_of(i * kTileThreads + t)] = held[i];",
            "vectors[i * kTileThreads + t] = held[i];",
        ),
        (
            "csrc/cuda/row_tiles.cuh",
            "the mask's words of the tile before",
            "p.mask[row * p.mask_stride + group]",
            "p.mask[row * p.mask_stride + threadIdx.x]",
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
    ]
] + [
    *without_barriers("csrc/cuda/*.cu*", RACES),
    Mutant(
        "csrc/cuda/store_kv.cu",
        "rows for one slot are written plainly",
        "store_relaxed(&p.last[slot], static_cast<int32_t>(row));",
        "p.last[slot] = static_cast<int32_t>(row);",
        RACES,
    ),
    Mutant(
        "csrc/cuda/module.cpp",
        "an error is raised twice",
        "  cudaGetLastError();  // or",
        "  // or",
        "tests/test_cuda_emulated.py -k error",
    ),
]
