"""The pool of pages that holds all keys and values, of every layer."""

from __future__ import annotations

import os

import numpy as np
import torch

from ..ops import copy_pages
from .arguments import whole_number
from .cache import Ints
from .ownership import NotCopied

MOST_COPIED = 1024  # pages a call: beyond that a GPU moves less than 32 bytes of each at a time
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class KVPool(NotCopied):
    """Keys and values, each [layers, pages, page_size, Hkv, D]. What no path holds is never
    read."""

    instead = "it belongs to its engine. Make another with Engine.from_pretrained()"

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        memory: int | str | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        whole_number("page_size", page_size, 1, 256)
        self.page_bytes = 2 * layers * page_size * kv_heads * head_dim * dtype.itemsize
        self.token_bytes = self.page_bytes // page_size
        limit = default_memory(device) if memory is None else parse_memory(memory)
        if limit > total_memory(device):
            raise ValueError(
                f"memory: got {limit} bytes, expected at most the {total_memory(device)} of the machine"
            )
        self.pages = min(limit // self.page_bytes, 2**31 // page_size)
        if self.pages < 1:
            raise ValueError(
                f"memory: got {limit} bytes, expected at least {self.page_bytes}, one page of "
                f"{page_size} tokens"
            )
        # on a CPU the system gives memory when a page is first written, so that a large
        # pool costs nothing
        shape = (layers, self.pages, page_size, kv_heads, head_dim)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)

    def copy(self, source: Ints, target: Ints) -> None:
        """Copies whole pages in all layers, in one call up to MOST_COPIED: no target is a source."""
        if source.size:
            pairs = torch.from_numpy(np.stack((source, target))).to(self.k.device)
            for src, dst in pairs.split(MOST_COPIED, dim=1):
                copy_pages(self.k, self.v, src, dst)


def parse_memory(memory: int | str) -> int:
    """Bytes, or a text such as "512MiB" or "4GiB"."""
    if isinstance(memory, int):
        return memory
    if not isinstance(memory, str):
        raise TypeError(f"memory: got {memory!r}, expected bytes or a text such as '4GiB'")
    number, unit = memory[:-3].strip(), memory[-3:]
    try:
        return int(float(number) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise ValueError(
            f"memory: got {memory!r}, expected bytes, or a number with KiB, MiB, GiB or TiB"
        ) from None


def default_memory(device: torch.device) -> int:
    """A quarter of the machine's memory; on a GPU, 60 % of what is free."""
    if device.type == "cuda":
        return int(0.6 * torch.cuda.mem_get_info(device)[0])
    return total_memory(device) // 4


def total_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
