"""Journals: what a long run has done, in a file that outlives it.

A journal is JSON lines, each with a checksum. The first says what was asked for, every other one is a
record that was on the disk (fsync) before the run went on. It is one file and only grows, so there is
nothing of which a crash could leave half but its last line, and that one is cut off. Arrays are
base64 of little-endian bytes within a line: safetensors would be a second file beside it, which cannot be
appended to.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

FORMAT, VERSION = "pyttc journal", 2
MAX_LINE = 1 << 28  # bytes
Record = dict[str, Any]


class JournalError(ValueError):
    """A journal that cannot be used, and why."""


class Journal:
    """The journal at `path` of a run that was asked for like `asked`, new or to be continued.

    Args:
        path: the file; it is made if it is not there.
        asked: what tells this run from others, as JSON knows it.

    Raises:
        JournalError: for a file that is no journal, of another version, of a run that was asked for
            differently, damaged before its last line, or in use by another process. It is left as it is.
        OSError: where it cannot be opened or written.
    """

    def __init__(self, path: str | Path, asked: Record) -> None:
        self.path = Path(path)
        header = line({"format": FORMAT, "version": VERSION, "asked": asked})
        new = not self.path.exists()
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self._size = self._check(header)
            self._file.truncate(self._size)
            if not self._size:
                self._write(header)
            if new:
                sync_folder(self.path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def records(self) -> Iterator[Record]:
        """What earlier runs wrote, oldest first."""
        with open(self.path, "rb") as file:
            file.readline(MAX_LINE)
            while file.tell() < self._size:
                text = file.readline(MAX_LINE)
                record = parsed(text)
                if record is None:
                    raise JournalError(f"{self.path}: was changed while it was read")
                yield record

    def append(self, record: Record) -> None:
        """Writes a record; it is on the disk when this returns.

        Raises:
            OSError: where it cannot be written. The journal is then as it was before.
        """
        self._write(line(record))

    def _write(self, text: bytes) -> None:
        try:
            rest = memoryview(text)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            self._file.truncate(self._size)
            if isinstance(error, OSError):
                raise unwritable(self.path, error) from error
            raise
        self._size += len(text)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self.path}: in use by another run") from None

    def _check(self, header: bytes) -> int:
        """The bytes of the file up to the end of its last whole line."""
        self._file.seek(0)
        first = self._file.readline(MAX_LINE)
        if header.startswith(first) and first != header:
            return 0  # new, or ended while its first line was written
        self._check_header(parsed(first), header)
        size, number = len(first), 1
        bad = None
        while text := self._file.readline(MAX_LINE):
            number += 1
            if bad is not None:
                raise JournalError(f"{self.path}, line {bad}: damaged")
            if parsed(text) is None:
                bad = number
            else:
                size += len(text)
        return size

    def _check_header(self, found: Record | None, header: bytes) -> None:
        if found is None or found.get("format") != FORMAT:
            raise JournalError(f"{self.path}: not a journal that pyttc wrote")
        if found.get("version") != VERSION:
            raise JournalError(
                f"{self.path}: a journal of version {str(found.get('version')):.20}, and this pyttc reads "
                f"version {VERSION}"
            )
        difference = differs(found.get("asked"), (parsed(header) or {})["asked"])
        if difference:
            raise JournalError(
                f"{self.path}: the journal of another run, {difference}; give this run a file of its own"
            )


def line(record: Record) -> bytes:
    """A record as a line of the file: JSON, the checksum of what stands before it at the end."""
    text = json.dumps(record)[:-1].encode()
    return b'%s, "crc": %d}\n' % (text, zlib.crc32(text))


def parsed(text: bytes) -> Record | None:
    """The record of a line; None for one that `line` did not write."""
    body, found, tail = text.rpartition(b', "crc": ')
    if not found or tail != b"%d}\n" % zlib.crc32(body):
        return None
    try:
        record = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def differs(there: Any, here: Any, name: str = "") -> str:
    """The first place where two things that JSON knows differ, in words; "" where they do not."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            inner = f"{name}.{key}" if name else str(key)
            if found := differs(there.get(key), here.get(key), inner):
                return found
        return ""
    if there == here:
        return ""
    return f"{name or 'which'} is {short(there)} there and {short(here)} here"


def short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}... (crc {zlib.crc32(text.encode()):08x})"


def sync_folder(path: Path) -> None:
    """Makes the name of a new file outlive a crash."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all: what was there before stays until then.

    Raises:
        OSError: where it cannot be written; nothing is left behind.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise
    sync_folder(path)


def unwritable(path: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    return OSError(error.errno, f"{reason}; what was there before is kept", str(path))
