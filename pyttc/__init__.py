"""Test-time compute for PyTorch: many paths from one prefix, sampled, scored and searched at the
cost of the bytes they do not share."""

import importlib
import importlib.util
import pkgutil
from typing import Any

import torch

if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(f"pyttc needs torch 2.10 or later; this is torch {torch.__version__}")
if importlib.util.find_spec(f"{__name__}._C") is None:
    # In a checkout that is not built: with what is built of an installed package.
    __path__ = pkgutil.extend_path(__path__, __name__)
try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "pyttc's native module is not built here: install the package (pip install .) or, to work "
        "in a checkout, pip install -e ."
    ) from error

_C.bind_torch(torch.Tensor, torch.nn.Parameter)

from .dispatch import explain  # noqa: E402
from .ops.copy_pages import copy_pages  # noqa: E402
from .ops.lm_head_topk import lm_head_topk  # noqa: E402
from .ops.merge_states import merge_states  # noqa: E402
from .ops.prefix_tree_attention import prefix_tree_attention  # noqa: E402
from .ops.sample import Sample, sample  # noqa: E402
from .ops.select_beams import select_beams  # noqa: E402
from .ops.shared_prefix_attention import shared_prefix_attention  # noqa: E402
from .ops.store_kv import store_kv  # noqa: E402
from .ops.topk_score import TopKScore, topk_score  # noqa: E402
from .prefix_tree import PrefixTree  # noqa: E402

__version__ = "0.1.0"
# These need transformers, which is imported when the first of them is used.
_ENGINE = ("Cost", "Engine", "LinearHead", "OutOfPages", "Paths", "Unsupported", "register")
_SEARCH = ("Budget", "curve", "solve", "stream")
__all__ = [
    "Budget",
    "Cost",
    "Engine",
    "LinearHead",
    "OutOfPages",
    "Paths",
    "PrefixTree",
    "Sample",
    "TopKScore",
    "Unsupported",
    "copy_pages",
    "curve",
    "explain",
    "lm_head_topk",
    "merge_states",
    "prefix_tree_attention",
    "register",
    "sample",
    "select_beams",
    "shared_prefix_attention",
    "solve",
    "store_kv",
    "stream",
    "topk_score",
]


def __getattr__(name: str) -> Any:
    if name in _ENGINE:
        return getattr(importlib.import_module(".engine", __name__), name)
    if name in _SEARCH:
        return getattr(importlib.import_module(".search", __name__), name)
    if name == "search":
        return importlib.import_module(".search", __name__)
    raise AttributeError(f"module 'pyttc' has no attribute {name!r}")
