"""Reward heads from files of any bytes: a head, or a ValueError that names the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from pyttc.engine import LinearHead
from tests.fuzz import Reader, patched

SEEDS = (b"", b"\x01\x00", b"\x05" + bytes(range(90)), b"\x00" + b"\xff" * 20)
FILE = Path(tempfile.mkdtemp()) / "head.safetensors"
LinearHead(torch.arange(6.0), 0.5).save(str(FILE))
WHOLE = FILE.read_bytes()


def target(data: bytes) -> None:
    reader = Reader(data)
    FILE.write_bytes(patched(WHOLE, reader) if reader.below(4) else reader.left())
    try:
        head = LinearHead.from_file(str(FILE))
    except (ValueError, TypeError) as error:
        assert str(FILE) in str(error) or "expected" in str(error)
        return
    assert head.weight.dtype is torch.float32 and head.weight.ndim == 1
    assert head.bias.ndim == 0
