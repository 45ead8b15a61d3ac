"""The pool of keys and values: what fits into a memory limit, and what a copy moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyttc.engine import pool
from pyttc.engine.pool import KVPool, default_memory, parse_memory, total_memory
from tests.common import same

CPU, META, GPU = (torch.device(name) for name in ("cpu", "meta", "cuda"))
PAGE = (
    2 * 3 * 16 * 5 * 24 * 2
)  # bytes: keys and values, layers, tokens, heads, their width, bfloat16


def made(memory: int | str | None, device: torch.device = CPU) -> KVPool:
    return KVPool(3, 5, 24, 16, memory, torch.bfloat16, device)


@pytest.mark.parametrize("memory", [PAGE, 2 * PAGE - 1, 7 * PAGE, 7 * PAGE + 1, "1MiB"])
def test_as_many_pages_as_the_limit_holds(memory: int | str) -> None:
    held = made(memory)
    assert held.page_bytes == PAGE and held.token_bytes == PAGE // 16
    assert held.pages == (2**20 if memory == "1MiB" else int(memory)) // PAGE
    for t in (held.k, held.v):
        assert t.shape == (3, held.pages, 16, 5, 24) and t.dtype is torch.bfloat16
    assert held.k.nbytes + held.v.nbytes == held.pages * PAGE


def test_a_limit_below_one_page_or_above_the_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=rf"memory: got {PAGE - 1} bytes, .* {PAGE}, one page"):
        made(PAGE - 1)
    monkeypatch.setattr(pool, "total_memory", lambda device: 9 * PAGE)
    assert made(9 * PAGE).pages == 9
    with pytest.raises(ValueError, match=f"memory: got {9 * PAGE + 1} bytes, .* the {9 * PAGE} of"):
        made(9 * PAGE + 1)


def test_slots_are_32_bit_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "total_memory", lambda device: 2**60)
    assert made(2**55, META).pages == 2**31 // 16
    assert made(2**31 // 16 * PAGE - 1, META).pages == 2**31 // 16 - 1


def test_limits_are_said_in_bytes_or_units() -> None:
    assert parse_memory(12345) == 12345
    for text, size in (("1.5KiB", 1536), ("2 MiB", 2**21), ("3GiB", 3 * 2**30), ("1TiB", 2**40)):
        assert parse_memory(text) == size
    for text in ("", "12", "1KB", "one MiB", "1e999GiB"):
        with pytest.raises(ValueError, match="memory: got"):
            parse_memory(text)
    with pytest.raises(TypeError, match="memory: got 1.5"):
        parse_memory(1.5)  # type: ignore[arg-type]


def test_by_default_a_quarter_of_the_machine_or_most_of_what_a_gpu_has_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(lines["MemTotal"].split()[0]) << 10
    assert 0.95 * total < total_memory(CPU) < 1.05 * total
    assert default_memory(CPU) == total_memory(CPU) // 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    assert default_memory(GPU) == 600 and total_memory(GPU) == 5000
    monkeypatch.setattr(pool, "total_memory", lambda device: 12 * PAGE + 3)
    assert made(None).pages == 3


def test_a_copy_moves_whole_pages_of_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    held = made(6 * PAGE)
    for t in (held.k, held.v):
        t.copy_(torch.randn(t.shape))
    k, v = held.k.clone(), held.v.clone()
    held.copy(np.array([4, 0]), np.array([1, 3]))
    k[:, [1, 3]], v[:, [1, 3]] = k[:, [4, 0]], v[:, [4, 0]]
    assert same(held.k, k) and same(held.v, v)
    monkeypatch.setattr(pool, "MOST_COPIED", 2)
    held.copy(np.array([0, 1, 0]), np.array([2, 5, 4]))
    k[:, [2, 5, 4]], v[:, [2, 5, 4]] = k[:, [0, 1, 0]], v[:, [0, 1, 0]]
    assert same(held.k, k) and same(held.v, v)
    monkeypatch.setattr(pool, "copy_pages", None)  # nothing to copy: no call
    held.copy(np.array([], np.int64), np.array([], np.int64))
