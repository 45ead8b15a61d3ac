"""The ops. Each file is one op's definition: specification, checks, fake, reference, public function."""

from .copy_pages import copy_pages
from .merge_states import merge_states
from .select_beams import select_beams
from .store_kv import store_kv
from .sample import sample
from .topk_score import topk_score

__all__ = [
    "copy_pages",
    "merge_states",
    "select_beams",
    "store_kv",
    "sample",
    "topk_score",
]
