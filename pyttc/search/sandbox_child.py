"""The other side of `Sandbox`: a small process that imports one function and runs it on texts in forks of
itself. It imports nothing of the package and is started as a script."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any

NAMESPACES = 0x10000000, 0x40000000, 0x20000000, 0x08000000  # of users, networks, processes, IPC
MAX_ANSWER = 1 << 12  # bytes
NOBODY = 65534


def serve() -> None:
    order = json.loads(sys.stdin.buffer.readline())
    seconds = order["seconds"]
    die_with_parent()
    limit(resource.RLIMIT_AS, order["memory"])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_NOFILE, 64)
    try:
        function = imported(order["function"], order["path"], order["bare"])
    except BaseException as error:
        answer({"error": f"{type(error).__name__}: {error}"[:500]})
        return
    answer({"alone": left_alone()})
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        while asked:
            done = in_a_fork(function, asked, seconds)
            asked = asked[done:]


def answer(value: object) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


def imported(name: str, path: list[str], bare: dict[str, str]) -> Callable[..., Any]:
    """The function of a name like `package.module:function`. Of the packages in `bare` the files are known,
    and what they import is not run."""
    sys.path[:] = path
    for package, folder in bare.items():
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [folder]
    module, _, inner = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in inner.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def limit(what: int, value: int) -> None:
    highest = resource.getrlimit(what)[1]
    value = value if highest == resource.RLIM_INFINITY else min(value, highest)
    resource.setrlimit(what, (value, value))


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def left_alone() -> bool:
    """Leaves this process in namespaces of its own, where no network is and no other process: whether the
    kernel allows it."""
    user, *others = NAMESPACES
    flags = sum(others) | (0 if os.getuid() == 0 else user)
    if ctypes.CDLL(None).unshare(flags):
        return False
    child = os.fork()
    if child:  # the namespace of processes holds those that are made from now on
        os.close(0)
        os.close(1)
        os.waitpid(child, 0)
        os._exit(0)
    die_with_parent()
    return True


def in_a_fork(function: Callable[..., Any], asked: list[Any], seconds: float) -> int:
    """Answers the texts of `asked` up to the first that fails: [number], or [] for that one. Returns how many
    that are."""
    reading, writing = os.pipe()
    worker = os.fork()
    if not worker:
        try:
            os.close(reading)
            work(function, asked, seconds, writing)
        finally:
            os._exit(1)
    os.close(writing)
    rest, count = b"", 0
    while count < len(asked):
        said, rest = one_line(reading, rest, seconds)
        try:
            value = json.loads(said)
        except (ValueError, RecursionError):
            value = None
        good = isinstance(value, (bool, int, float))
        answer([value] if good else [])
        count += 1
        if not good:
            break
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    os.close(reading)
    return count


def one_line(reading: int, said: bytes, seconds: float) -> tuple[bytes, bytes]:
    """(a line, what came behind it); no line where none comes in time, or too long a one."""
    end = time.monotonic() + seconds
    while b"\n" not in said and len(said) <= MAX_ANSWER:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        part = os.read(reading, MAX_ANSWER) if ready else b""
        if not part:
            return b"", b""
        said += part
    line, _, rest = said.partition(b"\n")
    return (line, rest) if len(line) <= MAX_ANSWER else (b"", b"")


def work(function: Callable[..., Any], asked: list[Any], seconds: float, writing: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    limit(resource.RLIMIT_CPU, int(seconds * len(asked)) + 1)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    limit(resource.RLIMIT_NPROC, 0)
    for arguments in asked:
        os.write(writing, json.dumps(function(*arguments)).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    serve()
