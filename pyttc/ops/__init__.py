"""The ops. Each file is one op's definition: specification, checks, fake, reference, public function."""

from .merge_states import merge_states
from .prefix_tree_attention import prefix_tree_attention
from .shared_prefix_attention import shared_prefix_attention

__all__ = [
    "merge_states",
    "prefix_tree_attention",
    "shared_prefix_attention",
]
