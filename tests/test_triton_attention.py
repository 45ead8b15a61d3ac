"""Attention's Triton kernels, compiled as their launchers call them: what they take of a multiprocessor, and
that the loads of a tile are under way while another is computed with."""

import os
import re
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")
from pyttc.triton_kernels import prefix_tree_attention, shared_prefix_attention  # noqa: E402

from . import fake_cuda  # noqa: E402
from .test_triton import empty, no_device, zeros  # noqa: E402, F401

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
HALF_A_MULTIPROCESSOR = 228 * 1024 // 2 - 1024  # bytes of shared memory
# What a program keeps for after its tiles may wait in local memory; the loop over them writes none.
BESIDE_THE_LOOP = 160


def tree(
    dtype: torch.dtype, d: int = 128, heads: int = 32, apart: bool = False, **options: float
) -> None:
    """`apart`: pages do not lie behind one another."""
    q, pool = empty(64, heads, d, dtype=dtype), empty(40, 2, 16, 8, d, dtype=dtype)
    pages = pool[:, 0] if apart else pool.view(80, 16, 8, d)
    sizes = (200, 5), (900, 4), (900, 4), (64, 3)
    plan = [*(zeros(*size, dtype=torch.int32) for size in sizes), torch.empty(300, 0)]
    unused = [torch.empty(0)] * 5
    prefix_tree_attention.launch(q, pages, pages, *unused, plan=plan, **options)


def dense(dtype: torch.dtype, d: int = 128, heads: int = 32, prefix: int = 640) -> None:
    k_prefix, k_suffix = empty(1, prefix, 8, d, dtype=dtype), empty(1, 64, 256, 8, d, dtype=dtype)
    q, lens = empty(1, 64, heads, d, dtype=dtype), zeros(1, 64, dtype=torch.int32)
    shared_prefix_attention.launch(q, k_prefix, k_prefix.clone(), k_suffix, k_suffix.clone(), lens)


OPTIONS = {"window": 512, "softcap": 30.0}
TWO_A_MULTIPROCESSOR: dict[str, Callable[[], None]] = {
    "dense": lambda: dense(BF16),
    "dense-whole-chunks": lambda: dense(BF16, prefix=1024),
    "dense-64": lambda: dense(F16, 64),
    "tree": lambda: tree(BF16),
    "tree-apart": lambda: tree(BF16, apart=True),
    "tree-options": lambda: tree(BF16, apart=True, **OPTIONS),
    "tree-64": lambda: tree(F16, 64),
}
# Nothing else takes more: more rows than a program has are more programs.
LARGEST: dict[str, Callable[[], None]] = {
    "dense": lambda: dense(BF16),
    "tree": lambda: tree(BF16),
    "dense-256": lambda: dense(BF16, 256, heads=8 * 128),
    "tree-256-options": lambda: tree(BF16, 256, apart=True, **OPTIONS),
    "dense-256-f32": lambda: dense(F32, 256, heads=8 * 64),
    "tree-256-f32-options": lambda: tree(F32, 256, apart=True, **OPTIONS),
    "tree-f32-window": lambda: tree(F32, window=512),
}
CASES = [(cc, name) for cc in (80, 100) for name in ("dense", "tree")]
CASES += [(90, name) for name in LARGEST if name not in ("dense", "tree")]
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there"
)


@pytest.mark.parametrize("name", TWO_A_MULTIPROCESSOR)
def test_two_programs_share_a_multiprocessor(name, no_device):  # noqa: F811
    device = fake_cuda.use(90)
    TWO_A_MULTIPROCESSOR[name]()
    for kernel in device.compiled:
        assert kernel.spilled == 0, kernel
        assert kernel.shared <= HALF_A_MULTIPROCESSOR, kernel
    kernel = device.compiled[0]
    loop = kernel.loop()
    assert re.search(r"LDGSTS\S*\.128", loop), kernel.name
    # Of two groups of loads a tile, those of the next may still be on their way.
    assert re.findall(r"DEPBAR\.LE SB0, (\w+)", loop) == ["0x2"], kernel.name
    # All four warps, which are one group, and none twice: each has 16 rows of its own.
    assert "HGMMA.64x64x16" in loop, kernel.name


@pytest.mark.parametrize(("cc", "name"), CASES)
def test_largest(cc, name, no_device):  # noqa: F811
    device = fake_cuda.use(cc)
    LARGEST[name]()
    for kernel in device.compiled:
        assert kernel.spilled <= BESIDE_THE_LOOP, kernel
        assert "STL" not in kernel.loop(), kernel
        assert kernel.shared <= fake_cuda.SHARED_BYTES[80], kernel


def test_counts_are_not_compiled_for(no_device):  # noqa: F811
    """Other numbers of paths and tokens take the same kernel."""
    device = fake_cuda.use(90)
    dense(BF16, prefix=640)
    before = len(device.compiled)
    for prefix in (641, 1040, 5000):
        dense(BF16, prefix=prefix)
    assert len(device.compiled) == before


def test_more_groups_than_a_launch_has_programs_behind_each_other():
    q, kv = empty(65_536, 1, 1, 16), empty(65_536, 0, 1, 16)
    lens = zeros(65_536, 1)
    with pytest.raises(ValueError, match="q: got 65536 groups, expected at most 65535"):
        shared_prefix_attention.launch(q, kv, kv, kv[:, None], kv[:, None], lens)
