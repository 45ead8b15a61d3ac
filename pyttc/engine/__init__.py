"""The engine: paths over one paged cache, on any transformers model with ordinary attention."""

from .cache import OutOfPages
from .cost import Cost, Work
from .engine import Engine
from .head import LinearHead
from .model import Unsupported
from .paths import Paths

__all__ = ["Cost", "Engine", "LinearHead", "OutOfPages", "Paths", "Unsupported", "Work"]
