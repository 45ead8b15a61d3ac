"""Test-time compute for PyTorch: many paths from one prefix, sampled, scored and searched at the cost
of the bytes they do not share."""

import torch

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "pyttc's native module is not built here. Install the package (pip install .), or, to work in "
        "a checkout, pip install -e ."
    ) from error

_C.bind_torch(torch.Tensor)

from .dispatch import explain  # noqa: E402
from .ops.copy_pages import copy_pages  # noqa: E402
from .ops.merge_states import merge_states  # noqa: E402
from .ops.prefix_tree_attention import prefix_tree_attention  # noqa: E402
from .ops.select_beams import select_beams  # noqa: E402
from .ops.shared_prefix_attention import shared_prefix_attention  # noqa: E402
from .ops.store_kv import store_kv  # noqa: E402
from .prefix_tree import PrefixTree  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "PrefixTree",
    "copy_pages",
    "explain",
    "merge_states",
    "prefix_tree_attention",
    "select_beams",
    "shared_prefix_attention",
    "store_kv",
]
