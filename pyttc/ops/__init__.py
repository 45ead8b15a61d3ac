"""The ops. Each file is one op's definition: specification, checks, fake, reference, function."""

from .copy_pages import copy_pages
from .lm_head_topk import lm_head_topk
from .merge_states import merge_states
from .prefix_tree_attention import prefix_tree_attention
from .sample import sample
from .select_beams import select_beams
from .shared_prefix_attention import shared_prefix_attention
from .store_kv import store_kv
from .topk_score import topk_score

__all__ = [
    "copy_pages",
    "lm_head_topk",
    "merge_states",
    "prefix_tree_attention",
    "sample",
    "select_beams",
    "shared_prefix_attention",
    "store_kv",
    "topk_score",
]
