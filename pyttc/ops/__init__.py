"""The ops. Each file is one op's definition: specification, checks, fake, reference, public function."""

from .lm_head_topk import lm_head_topk
from .merge_states import merge_states
from .sample import sample
from .topk_score import topk_score

__all__ = [
    "lm_head_topk",
    "merge_states",
    "sample",
    "topk_score",
]
