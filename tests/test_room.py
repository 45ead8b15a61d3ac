"""Memory for weights: that the system does give large pages, which nothing else would show."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from pyttc.engine.room import ALIGNED, LARGE, Room


def in_large_pages(address: int) -> int:
    """Bytes of the mapping around an address that lie in large pages, as the system itself counts."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            begin, end = (int(of, 16) for of in name.split("-"))
            inside = begin <= address < end
        elif inside and name == "AnonHugePages:":
            return int(rest[0]) << 10
    return 0


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without large pages")
def test_weights_lie_in_large_pages() -> None:
    size = 16 * LARGE
    plain = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    plain.madvise(mmap.MADV_HUGEPAGE)
    plain.write(bytes(size))
    asked = torch.frombuffer(plain, dtype=torch.uint8)
    if in_large_pages(asked.data_ptr()) < size // 2:
        pytest.skip("this machine has few large pages to give")
    del asked
    plain.close()
    held = Room(2, size).take((size,), torch.uint8).fill_(1)
    assert held.data_ptr() % ALIGNED == 0 and in_large_pages(held.data_ptr()) >= size // 2
