"""The ops. Each file is one op's definition: specification, checks, fake, reference, public function."""

from .merge_states import merge_states

__all__ = [
    "merge_states",
]
