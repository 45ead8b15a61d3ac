"""pyttc._cuda compiled for the host: the .cu files and their bindings, built by g++ against cuda.h."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
import torch

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w", "-DPYTTC_EMULATE"]


def cuda_include() -> str | None:
    """The headers of the CUDA toolkit (types and 16-bit floats), or None without one."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not os.path.exists(nvcc):
        return None
    log = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    found = re.search(r'INCLUDES="-I([^"]+)"', log.stderr)
    return found[1] if found else None


def build(folder: Path, name: str = "_cuda_emulated", flags: tuple[str, ...] = ()) -> Path:
    """Compiles what changed of csrc/cuda into `folder` and links it as the Python module `name`."""
    include = [ROOT / "csrc/include", ROOT / "csrc/cuda", ROOT / "tests", cuda_include()]
    include += [pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = ["g++", *FLAGS, *flags, f"-DPYTTC_MODULE={name}", '-DPYTTC_ARCHS="emulated"']
    command += [f"-I{path}" for path in include]
    folders = ("csrc/include", "csrc/cuda", "tests/emulation")
    headers = sorted(header for folder in folders for header in ROOT.glob(f"{folder}/*.*h"))
    common = hashlib.sha256(" ".join(command).encode())
    for header in headers:
        common.update(header.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    objects, running = [], []
    for source in sorted([*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.cpp")]):
        digest = common.copy()
        digest.update(source.read_bytes())
        objects.append(folder / f"{source.stem}-{digest.hexdigest()[:16]}.o")
        if not objects[-1].exists():
            compile_one = [*command, "-x", "c++", "-c", str(source), "-o", str(objects[-1])]
            running.append(subprocess.Popen(compile_one))
            if len(running) == (os.cpu_count() or 1):
                assert running.pop(0).wait() == 0
    assert all(process.wait() == 0 for process in running)
    library = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    link = ["g++", "-shared", *flags, *map(str, objects), "-o", str(library)]
    subprocess.run(link, check=True)
    return library


def load(library: Path) -> ModuleType:
    name = library.name.partition(".")[0]
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.bind_torch(torch.Tensor, torch.nn.Parameter)
    return module
