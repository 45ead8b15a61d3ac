"""Who may touch the pages of an engine: one object for each path."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex


class NotCopied:
    """A base of what stands for pages of one cache: a copy would give them back a second time.

    Raises:
        TypeError: from copy, deepcopy and pickle, with what to do `instead`.
    """

    instead: ClassVar[str]

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"{name}: can be neither copied nor pickled: {self.instead}")
