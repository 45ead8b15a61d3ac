"""Who may touch the pages of an engine: one thread at a time, and one object for each path."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar, Concatenate, NoReturn, ParamSpec, Protocol, SupportsIndex, TypeVar


class Locked(Protocol):
    @property
    def lock(self) -> AbstractContextManager[bool]: ...


Self = TypeVar("Self", bound=Locked)
Given = ParamSpec("Given")
Result = TypeVar("Result")


def synchronized(
    method: Callable[Concatenate[Self, Given], Result],
) -> Callable[Concatenate[Self, Given], Result]:
    """A method that holds its object's `lock`, which is given back however the method ends."""

    @functools.wraps(method)
    def alone(self: Self, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with self.lock:
            return method(self, *args, **kwargs)

    return alone


class NotCopied:
    """A base of what stands for pages of one cache: a copy would give them back a second time.

    Raises:
        TypeError: from copy, deepcopy and pickle, with what to do `instead`.
    """

    instead: ClassVar[str]

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"{name}: can be neither copied nor pickled: {self.instead}")
