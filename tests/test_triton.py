"""Triton kernels without a GPU: run in the interpreter, and compiled for three architectures as their
launchers call them, with registers, spills, shared memory and the width of loads asserted
(attention: test_triton_attention.py)."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from pyttc.triton_kernels import (  # noqa: E402
    copy_pages,
    lm_head_topk,
    logits,
    merge_states,
    sample,
    select_beams,
    store_kv,
    topk_score,
)
from triton.runtime import driver  # noqa: E402

from . import fake_cuda  # noqa: E402

BF16, F32 = torch.bfloat16, torch.float32


def test_interpreted():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-p", "no:cacheprovider"]
    folder = Path(__file__).parent / "interpreted"
    done = subprocess.run(
        [*command, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=folder.parents[1],
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def copy(pairs: int, dtype: torch.dtype = BF16) -> None:
    pages = empty(2, 40, 16, 8, 128, dtype=dtype)
    copy_pages.launch(pages, pages.clone(), zeros(pairs), zeros(pairs))


def beams(**options: object) -> None:
    logprobs, groups = empty(1024, 32, dtype=F32), zeros(1024)
    if options:
        options |= {"bonus": logprobs, "length": groups}
    select_beams.launch(
        logprobs[:, 0], logprobs, zeros(1024, 32), groups, 256, num_groups=4, **options
    )


def store(rows: int = 512) -> None:
    k, pages = empty(rows, 8, 128), empty(40, 16, 8, 128)
    store_kv.launch(k, k.clone(), pages, pages.clone(), zeros(rows))


def merge() -> None:
    out, lse = empty(64, 32, 128), empty(64, 32, dtype=F32)
    merge_states.launch(out, lse, out.clone(), lse.clone())


def score(k: int, dtype: torch.dtype = BF16, columns: int = 151_936) -> None:
    topk_score.launch(empty(4, columns, dtype=dtype), k, 0.7)


def draw(**options: object) -> None:
    ids = zeros(4)
    options.setdefault("seed", 5)
    sample.launch(empty(4, 151936), path_ids=ids, positions=ids, **options)


def draw_rows() -> None:
    whole, real = zeros(4), zeros(4, dtype=torch.float64)
    draw(seed=whole, temperature=real, top_k=whole, top_p=real, min_p=real, topk=20)


MASK = zeros(4, 4748, dtype=torch.int32)
# A call, the most registers its kernels may take, and of its first kernel the least 16-byte loads.
Case = tuple[Callable[[], None], int, int]
EVERYWHERE: dict[str, Case] = {
    "copy_pages": (lambda: copy(64), 128, 8),
    "lm_head_topk": (lambda: lm_head_topk.product(empty(64, 4096), empty(151936, 4096)), 255, 1),
    "merge_states": (merge, 64, 2),
    "sample": (lambda: draw(top_k=50, top_p=0.9, mask=MASK, topk=20), 255, 1),
    "select_beams": (beams, 255, 0),
    "store_kv": (store, 64, 2),
    "topk_score": (lambda: score(20), 255, 1),
}
ON_SM90: dict[str, Case] = {
    "copy_pages-1024": (lambda: copy(1024), 128, 8),
    "copy_pages-f32": (lambda: copy(64, F32), 168, 16),
    "sample-plain": (draw, 255, 1),
    "sample-rows": (draw_rows, 255, 1),
    "select_beams-all": (lambda: beams(length_penalty=0.6), 255, 0),
    "store_kv-many": (lambda: store(4096), 64, 0),
    "topk_score-1024": (lambda: score(1024, F32), 255, 2),
}


@pytest.fixture
def no_device():
    before = driver._active
    yield
    driver._active = before


CASES = [(cc, name, case) for cc in (80, 90, 100) for name, case in EVERYWHERE.items()]
CASES += [(90, name, case) for name, case in ON_SM90.items()]


compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there"
)


@compiled
@pytest.mark.parametrize(
    ("cc", "case"), [pytest.param(cc, case, id=f"sm_{cc}-{name}") for cc, name, case in CASES]
)
def test_compiled(cc, case, no_device):
    call, most_registers, least_wide = case
    device = fake_cuda.use(cc)
    call()
    assert device.launched
    for kernel in device.compiled:
        assert kernel.spilled == 0, kernel
        assert kernel.registers <= most_registers, kernel
        assert kernel.shared <= fake_cuda.SHARED_BYTES[cc], kernel
    if device.compiled:
        sass = device.compiled[0].sass
        wide = re.findall(r"LDG\S*\.128|LDGSTS\S*\.128|UTMALDG", sass)
        assert len(wide) >= least_wide, device.compiled[0].name


@compiled
def test_no_reduction_adds_floats(no_device):
    """The order would be that of a load's layout, which is another where a row is not aligned."""
    fake_cuda.use(90)
    score(20)
    draw()
    draw(top_p=0.9, topk=20, mask=MASK)
    kernels = logits.scan_kernel, topk_score.topk_score_kernel, sample.sample_kernel
    for kernel in kernels:
        for built in kernel.device_caches[90][0].values():
            added = re.findall(r'"tt\.(?:reduce|scan)".*?\}\)', built.asm["ttir"], re.DOTALL)
            assert added
            assert not any("addf" in part for part in added)


@compiled
def test_rows_are_not_compiled_for(no_device):
    """A step has as many as there are paths, some of which end at every step."""

    def step(rows: int) -> None:
        store(rows)
        lm_head_topk.product(empty(rows, 64), empty(256, 64))

    device = fake_cuda.use(90)
    step(2)
    step(1040)  # many rows for a slot are found in another way
    before = len(device.compiled)
    for rows in (1, 3, 16, 300, 1000, 1041, 5000):
        step(rows)
    assert len(device.compiled) == before


def test_more_columns_than_a_row_may_have():
    with pytest.raises(
        ValueError, match=r"logits: got 33554433 columns, expected at most 33554432"
    ):
        score(1, columns=2**25 + 1)


@compiled
def test_more_rows_than_a_launch_has_programs_side_by_side(no_device):
    device = fake_cuda.use(90)
    topk_score.launch(empty(70_000, 16), 3)
    assert [grid for _, grid in device.launched] == [(70_000, 1, 1)] * 2
