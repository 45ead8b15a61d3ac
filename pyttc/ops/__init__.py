"""The ops. Each file is one op's definition: specification, checks, fake, reference, public function."""

from .copy_pages import copy_pages
from .merge_states import merge_states
from .select_beams import select_beams
from .store_kv import store_kv
from .sample import sample
from .topk_score import topk_score
from .prefix_tree_attention import prefix_tree_attention
from .shared_prefix_attention import shared_prefix_attention

__all__ = [
    "copy_pages",
    "merge_states",
    "select_beams",
    "store_kv",
    "sample",
    "topk_score",
    "prefix_tree_attention",
    "shared_prefix_attention",
]
