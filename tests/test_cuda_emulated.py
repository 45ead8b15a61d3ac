"""The CUDA kernels run on the CPU by the host emulation, against the reference: forwards and backwards, under
AddressSanitizer, and under ThreadSanitizer, which takes each of their threads for one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import emulation

pytestmark = pytest.mark.skipif(
    emulation.cuda_include() is None, reason="the emulation needs the CUDA toolkit's headers"
)
SETUP = """
import os
import sys
from pathlib import Path
import torch
from tests import emulation, kernel_calls, kernels
from pyttc import dispatch

torch.use_deterministic_algorithms(True)  # empty() is full of NaN and huge numbers
module = emulation.load(Path(sys.argv[1]))
dispatch.cuda_module = lambda: module
for name in kernels.kernel_ops("cuda"):
    op = dispatch.ops[name]
    op.impls["cuda"].missing = op.impls["cuda"].device = None
    sys.modules[f"pyttc.ops.{name}"].cuda_module = lambda: module
"""
PROGRAM = """
for name in kernels.kernel_ops("cuda"):
    for call in kernel_calls.calls(name):
        kernels.check(name, call, "cuda")
    print(name, len(kernel_calls.calls(name)))
kernels.check_stray_slots("cuda", "cpu")
kernels.check_merged_bits("cuda", "cpu")
if os.environ.get("PYTTC_EMULATE_REVERSE") == "0":
    kernels.check_rows_alone("cuda", "cpu")
    kernels.check_tokens("cuda", "cpu", 600)
    kernels.check_many_draws("cuda", "cpu")
    kernels.check_far_pages("cuda")
"""
LITTLE_SHARED_MEMORY = """
try:
    kernels.run("select_beams", kernel_calls.select_beams_calls()[-4], "cuda")
except RuntimeError as error:
    print(error)
for name in kernels.kernel_ops("cuda"):
    kernels.check(name, kernel_calls.calls(name)[0], "cuda")
"""
RACES = """
chosen = dict(part.split(":") for part in os.environ["PYTTC_CALLS"].split())
for name in kernels.kernel_ops("cuda"):
    for i, call in enumerate(kernel_calls.calls(name)):
        if not chosen or str(i) in chosen.get(name, "").split(","):
            kernels.check(name, call, "cuda")
"""
# Calls of each op that between them pass every barrier where it is needed: without it, they race.
SOME_CALLS = "copy_pages:0 sample:2,6,12,14,19 select_beams:2,3,28 store_kv:33 topk_score:5,13"


def run(library: Path, program: str = PROGRAM, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SETUP + program, str(library)],
        env={**os.environ, **environment},
        cwd=emulation.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    return done.stdout


def sanitizer(name: str) -> str:
    find = ["g++", f"-print-file-name={name}"]
    return subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def library():
    return emulation.build(emulation.ROOT / "build/emulated")


@pytest.mark.parametrize("reverse", ["0", "1"])
def test_against_the_reference(library, reverse):
    assert "store_kv" in run(library, PYTTC_EMULATE_REVERSE=reverse)


def test_an_error_is_raised_once(library):
    assert "CUDA: " in run(library, LITTLE_SHARED_MEMORY, PYTTC_EMULATE_SHARED="65536")


def test_addresses(tmp_path):
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")
    library = emulation.build(tmp_path, "_cuda_sanitized", flags)
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    run(library, LD_PRELOAD=sanitizer("libasan.so"), ASAN_OPTIONS=options)


@pytest.mark.parametrize(
    "calls",
    [pytest.param(SOME_CALLS, id="some"), pytest.param("", id="all", marks=pytest.mark.nightly)],
)
def test_races(tmp_path, calls):
    library = emulation.build(tmp_path, "_cuda_watched", ("-fsanitize=thread", "-g"))
    options = "halt_on_error=1:exitcode=66:report_mutex_bugs=0:suppressions=tests/trust/thread.supp"
    preload = sanitizer("libtsan.so")
    run(
        library,
        RACES,
        PYTTC_CALLS=calls,
        LD_PRELOAD=preload,
        TSAN_OPTIONS=options,
        OMP_NUM_THREADS="1",
    )
