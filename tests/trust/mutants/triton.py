"""Mutants of triton_kernels, for Triton's interpreter (tests/interpreted)."""

from . import Mutant
from .barriers import without_barriers

OPS = "tests/interpreted/test_ops.py -k"

MUTANTS = [
    Mutant(f"triton_kernels/{file}.py", bug, old, new, f"{OPS} {names}")
    for file, names, bug, old, new in [
        (
            "merge_states",
            "merge_states",
            "what an empty state holds is read",
            "in_a = live[:, None] & (d < D)[None, :] & (weight_a > 0.0)[:, None]",
            "in_a = live[:, None] & (d < D)[None, :]",
        ),
        (
            "merge_states",
            "merge_states",
            "two empty states: an infinity minus itself",
            'shift = tl.where(high == float("-inf"), 0.0, high)',
            "shift = high",
        ),
        (
            "store_kv",
            "store_kv",
            "heads that are not there are written",
            "live = (h < HEADS) & (d < D)",
            "live = d < D + 0 * h",
        ),
        (
            "store_kv",
            "store_kv",
            "the row behind is not asked for the same slot",
            "range(tl.program_id(0) + 1, rows, BLOCK_S)",
            "range(tl.program_id(0) + 2, rows, BLOCK_S)",
        ),
        (
            "store_kv",
            "store_kv",
            "of many rows for a slot any stays",
            'tl.atomic_max(table_ptr + slot, row, mask=before, sem="relaxed")',
            "tl.atomic_max(table_ptr + slot, row, mask=before & (row < 0))",
        ),
        (
            "store_kv",
            "'store_kv or 64_bit'",
            "an offset of 32 bits",
            "v_at = v_pages_ptr + page * v_page + offset * v_slot",
            "v_at = v_pages_ptr + (page * v_page).to(tl.int32) + offset * v_slot",
        ),
        (
            "copy_pages",
            "'copy_pages or 64_bit'",
            "an offset of 32 bits",
            "(dst * page_stride)[:, None]",
            "(dst * page_stride).to(tl.int32)[:, None]",
        ),
        (
            "copy_pages",
            "copy_pages",
            "values laid out as the keys are",
            "0 if v_strides[2:] == run else heads",
            "0 if k_strides[2:] == run else heads",
        ),
        (
            "attention",
            "attention",
            "the sum so far is not rescaled",
            "total = total * ratio + tl.sum(p, 1)",
            "total = total + tl.sum(p, 1)",
        ),
        (
            "attention",
            "'attention or infinite'",
            "another path's values reach a row as 0 * inf",
            "tl.where(live[:, None], values * ratio[:, None] + more, values)",
            "values * ratio[:, None] + more",
        ),
        (
            "attention",
            "attention",
            "slots past the last token are read",
            "inside = in_tile[:, None] & (d < D)[None, :]",
            "inside = (in_tile | True)[:, None] & (d < D)[None, :]",
        ),
        (
            "attention",
            "attention",
            "the last chunk of a path is not merged",
            "+ CHUNK - 1) // CHUNK",
            ") // CHUNK",
        ),
        (
            "attention",
            "attention",
            "chunks are merged without their maxima",
            'weight = tl.exp2(tl.load(high_ptr + at, mask=live, other=float("-inf")) - safe)',
            "weight = tl.where(live, 1.0, 0.0)",
        ),
        (
            "prefix_tree_attention",
            "attention",
            "tokens of other paths are seen",
            "below = live & (rank >= first) & (rank < last)",
            "below = live & (rank >= first)",
        ),
        (
            "prefix_tree_attention",
            "infinite",
            "values that are not finite are gone through without care",
            "if plain and is_spoilt(state):",
            "if q.dtype == tl.int32:",
        ),
        (
            "attention",
            "attention",
            "a window one token too short",
            "token[None, :] >= since[:, None]",
            "token[None, :] > since[:, None]",
        ),
        (
            "attention",
            "number",
            "a NaN is taken for nothing to attend to",
            'nothing = (highest == float("-inf")) & (total == 0.0)',
            'nothing = highest == float("-inf")',
        ),
        (
            "shared_prefix_attention",
            "infinite",
            "values that are not finite are gone through without care",
            "if plain and is_spoilt(state):",
            "if q.dtype == tl.int32:",
        ),
        (
            "shared_prefix_attention",
            "attention",
            "tiles begin where the suffix does",
            "prefix // TILE * TILE, chunk * CHUNK",
            "prefix, chunk * CHUNK",
        ),
        (
            "shared_prefix_attention",
            "attention",
            "all suffixes of a program as long as its first",
            "reach = tl.load(lens_at + n.to(tl.int64) * lens_stride",
            "reach = tl.load(lens_at + first_path.to(tl.int64) * lens_stride",
        ),
        (
            "logits",
            "topk_score",
            "of more columns than there is room for the last are forgotten",
            "if (reached >= k) | (middle == bound):",
            "if reached >= 0:",
        ),
        (
            "logits",
            "topk_score",
            "the last column stands for equal ones",
            "(order_key(x).to(tl.int64) << 32) | (0x7FFFFFFF - column)",
            "(order_key(x).to(tl.int64) << 32) | column",
        ),
        (
            "logits",
            "topk_score",
            "sums of tiles are added without their maxima",
            "tl.load(stats_ptr + tile * 5 + AT + 1, mask=live, other=0.0).to(tl.float64) * weight",
            "tl.load(stats_ptr + tile * 5 + AT + 1, mask=live, other=0.0).to(tl.float64)",
        ),
        (
            "logits",
            "sample",
            "the bits of a word of the mask are those of its first columns",
            "((word >> (column % 32)) & 1 != 0)",
            "((word >> (column % 16)) & 1 != 0)",
        ),
        (
            "logits",
            "topk_score",
            "a row with NaN is not flagged",
            'x = tl.where(x < float("inf"), x, float("inf"))',
            'x = tl.where(x != x, float("-inf"), x)',
        ),
        (
            "common",
            "topk_score",
            "-0 and +0 are not equal",
            "(x + 0.0).to(tl.int32, bitcast=True)",
            "x.to(tl.int32, bitcast=True)",
        ),
        (
            "common",
            "uniform",
            "a bit of the uniform numbers is lost",
            "(low.to(tl.int64) >> 11)",
            "(low.to(tl.int64) >> 12)",
        ),
        (
            "sample",
            "sample",
            "a column more than reaches the mass",
            "tl.cumsum(weight, 0) - weight < enough",
            "tl.cumsum(weight, 0) - 2 * weight < enough",
        ),
        (
            "select_beams",
            "select_beams",
            "the last child of equal tokens comes first",
            "(j[None, :] < column[:, None])",
            "(j[None, :] > column[:, None])",
        ),
        (
            "lm_head_topk",
            "lm_head_topk",
            "elements past the end of a row are multiplied",
            "live = (first + h < width)[None, :]",
            "live = (first + h < width + BLOCK_H)[None, :]",
        ),
    ]
]
for file, names in (
    ("copy_pages", "copy_pages"),
    ("logits", "topk_score or sample"),
    ("select_beams", "select_beams"),
):
    MUTANTS += without_barriers(f"triton_kernels/{file}.py", f"{OPS} {names}")
