"""Sandbox: a function of texts that a model wrote, run in a process that can do little else."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..engine import Paths

SCRIPT = Path(__file__).with_name("sandbox_child.py")
STARTING = 60.0  # seconds that importing the function may take
GRACE = 5.0  # seconds beyond a text's own after which the child itself is given up
MAX_LINE = 1 << 16
Value = bool | int | float


@dataclass
class Sandbox:
    """A verifier, or with `.score` a scorer, that is not trusted with what it is given.

    The function is imported in a child process, and runs in a fork of that child: with so many seconds of
    wall time a text, so many bytes of memory, no new processes or threads, no files it could write, an
    empty environment, and namespaces of its own, without a network and without sight of other processes. A
    text with which it does not end in time, raises, dies, or answers anything but a number is failed
    (False, as a score -inf), and no other text feels it. As a verifier it says yes with True or 1, and no
    with any other number.

    Where the kernel refuses namespaces to this user a warning says so: then the network is not cut off, and
    the function could send signals to the user's other processes. Files it may read are never hidden from
    it, and a hole in the kernel is out of scope.

    Args:
        function: `module:function` of (prompt, text) -> number, or a function that can be imported by its
            name. Its module is imported as it stands; keep it small, it is trusted.
        seconds: of wall time for a text.
        memory: bytes of address space, the interpreter (about 20 MB) included.
        texts: that may share a fork, which takes about a millisecond to make. 1 for a function that runs what
            it is given, so that no text can have a say in what is found of another; more for one that only
            reads it.

    Raises:
        ValueError: at the first text, for a function that cannot be imported within these limits.
    """

    function: str | Callable[[str, str], Any]
    seconds: float = 1.0
    memory: int = 1 << 28
    texts: int = 1
    _child: Child | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if callable(self.function) and hasattr(self.function, "__qualname__"):
            self.function = f"{self.function.__module__}:{self.function.__qualname__}"
        module, _, name = str(self.function).partition(":")
        known = isinstance(self.function, str) and module and name
        if not known or module == "__main__" or "<" in name:
            raise ValueError(
                f"function: got {self.function!r}, expected module:function, to be imported elsewhere"
            )
        for name in ("seconds", "memory", "texts"):
            value: Any = getattr(self, name)
            kind: Any = Real if name == "seconds" else Integral
            if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
                what = "a number" if name == "seconds" else "a whole number"
                raise ValueError(f"{name}: got {value!r}, expected {what} > 0")

    def __call__(self, prompt: str, text: str) -> Value | None:
        return self.many([(prompt, text)])[0]

    def many(self, pairs: Sequence[tuple[str, str]]) -> list[Value | None]:
        """What the function says of each (prompt, text), None where it failed."""
        found: list[Value | None] = []
        while len(found) < len(pairs):
            found += self._some(pairs[len(found) : len(found) + self.texts])
        return found

    def score(self, paths: Paths) -> list[float]:
        """A scorer of what the paths wrote."""
        tokenizer = paths.engine.tokenizer
        prompts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in paths.prompts]
        asked = [prompts[prompt] for prompt in paths.prompt.tolist()]
        found = self.many(list(zip(asked, paths.text(), strict=True)))
        return [-float("inf") if value is None else float(value) for value in found]

    def close(self) -> None:
        """Ends the child; the next text starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _some(self, pairs: Sequence[tuple[str, str]]) -> list[Value | None]:
        """Of these pairs, at least the first."""
        child = self._child if self._child and self._child.lives() else self._start()
        found: list[Value | None] = []
        try:
            child.send(pairs)
            for _ in pairs:
                said = child.receive(self.seconds + GRACE)
                if not isinstance(said, list):
                    raise OSError  # it is gone, or out of its mind
                number = said and isinstance(said[0], (bool, int, float)) and said[0] == said[0]
                found.append(said[0] if number else None)
        except OSError:
            self.close()
            return [*found, None]
        except BaseException:  # an answer that comes later must not be taken for another text's
            self.close()
            raise
        return found

    def _start(self) -> Child:
        child = Child()
        weakref.finalize(self, child.end)
        package = __name__.partition(".")[0]
        order = {
            "function": self.function,
            "seconds": self.seconds,
            "memory": self.memory,
            "path": [str(Path(folder).resolve()) for folder in sys.path],
            "bare": {package: str(SCRIPT.parents[1])},  # without what its __init__ imports
        }
        said = None
        with contextlib.suppress(OSError):
            child.send(order)
            said = child.receive(STARTING)
        if not isinstance(said, dict) or "alone" not in said:
            child.end()
            reason = said.get("error") if isinstance(said, dict) else "its process ended"
            raise ValueError(f"function: {self.function} cannot be imported here: {reason}")
        if not said["alone"]:
            warnings.warn(
                "this kernel gives a sandbox no namespaces of its own: its network is not cut off",
                stacklevel=5,
            )
        self._child = child
        return child


class Child:
    """The process, and lines of JSON to it and from it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout  # noqa: S101
        self._in, self._out = self._process.stdin, self._process.stdout
        self._said = b""

    def send(self, message: Any) -> None:
        self._in.write(json.dumps(message).encode() + b"\n")
        self._in.flush()

    def receive(self, seconds: float) -> Any:
        """The next line, None where none comes in time."""
        late = time.monotonic() + seconds
        while b"\n" not in self._said:
            left = max(0.0, late - time.monotonic())
            ready, _, _ = select.select([self._out], [], [], left)
            part = os.read(self._out.fileno(), MAX_LINE) if ready else b""
            if not part or len(self._said) > MAX_LINE:
                return None
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(line)
        return None

    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        for stream in (self._in, self._out):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()
