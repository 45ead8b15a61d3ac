"""The engine: paths over one paged cache, on any transformers model with ordinary attention."""

from .attention import register
from .cache import OutOfPages
from .cost import Cost, Work
from .engine import Engine
from .head import LinearHead
from .paths import Paths
from .support import Unsupported

__all__ = ["Cost", "Engine", "LinearHead", "OutOfPages", "Paths", "Unsupported", "Work", "register"]
