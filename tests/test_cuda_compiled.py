"""The CUDA kernels compiled by nvcc for the architectures a build targets: no warnings, no spills, no more
static shared memory than their launches reckon with, and 16-byte loads and stores where the design moves
16 bytes at a time."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
ARCHS = ("80", "90a", "100")
SOURCES = sorted(path.stem for path in ROOT.glob("csrc/cuda/*.cu"))
WIDE = {
    "copy_pages": "LDG STG",
    "merge_states": "LDG STG",
    "sample": "LDG",
    "store_kv": "LDG STG",
    "topk_score": "LDG",
}


@pytest.mark.skipif(not os.path.exists(NVCC), reason="nvcc is not installed")
@pytest.mark.parametrize("name", SOURCES)
def test_compiled(name, tmp_path):
    source = (ROOT / f"csrc/cuda/{name}.cu").read_text()
    static = re.search(r"kStaticBytes = (\d+) << 10;", source)
    target = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    command = [NVCC, "-std=c++17", "-O3", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v"]
    command += [f"-I{ROOT / 'csrc/include'}", str(ROOT / f"csrc/cuda/{name}.cu")]
    running = [
        subprocess.Popen(
            [*command, arch, "-o", str(tmp_path / f"{name}{i}.cubin")],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, arch in enumerate(target)
    ]
    for i, process in enumerate(running):
        log = process.communicate()[1]
        assert process.returncode == 0, log
        spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
        assert spills and all(bytes == ("0", "0") for bytes in spills), log
        assert all(int(n) <= 128 for n in re.findall(r"Used (\d+) registers", log)), log
        if "PYTTC_DYNAMIC_SHARED" in source:
            most = int(static[1]) << 10 if static else 0
            assert all(int(n) <= most for n in re.findall(r"(\d+) bytes smem", log)), log
        if name in WIDE and (dump := cuobjdump()):
            sass = subprocess.run(
                [dump, "-sass", str(tmp_path / f"{name}{i}.cubin")],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for load_or_store in WIDE[name].split():
                assert re.search(rf"{load_or_store}\S*\.128", sass)


def cuobjdump() -> str | None:
    """The one that Triton brings along, where it is installed."""
    triton = pytest.importorskip("triton")
    path = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(path) if path.exists() else None
