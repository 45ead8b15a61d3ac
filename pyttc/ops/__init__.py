"""The ops. Each file is one op's definition: specification, checks, fake, reference, public function."""

from .copy_pages import copy_pages
from .merge_states import merge_states
from .prefix_tree_attention import prefix_tree_attention
from .shared_prefix_attention import shared_prefix_attention
from .select_beams import select_beams
from .store_kv import store_kv

__all__ = [
    "copy_pages",
    "merge_states",
    "prefix_tree_attention",
    "shared_prefix_attention",
    "select_beams",
    "store_kv",
]
