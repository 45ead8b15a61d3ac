"""A stand-in CUDA driver for Triton: launchers run as on a GPU of compute capability `cc`, every kernel
is compiled to a cubin with the arguments its launcher passes, its resources are read, nothing runs."""

from __future__ import annotations

import re
import subprocess
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}


@dataclass
class Kernel:
    """What one compiled kernel needs."""

    name: str
    registers: int
    spilled: int
    shared: int
    sass: str

    def loop(self) -> str:
        """The first loop that holds no other."""
        code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", self.sass, re.MULTILINE)
        for end, (at, line) in enumerate(code):
            jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", line)
            if jump and int(jump[1], 16) < int(at, 16):
                return "\n".join(text for at, text in code[:end] if int(at, 16) >= int(jump[1], 16))
        return ""


def inspect(name: str, cubin: bytes, shared: int) -> Kernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", "-sass", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Kernel(name, int(found[1]), int(found[2]), shared, usage)


class FakeCuda:
    def __init__(self, cc: int) -> None:
        self.target = GPUTarget("cuda", cc, 32)
        self.compiled: list[Kernel] = []
        self.launched: list[tuple[str, tuple[int, int, int]]] = []
        properties = {
            "max_shared_mem": SHARED_BYTES[cc],
            "max_num_regs": 65_536,
            "multiprocessor_count": 132,
            "warpSize": 32,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }
        self.utils = types.SimpleNamespace(
            load_binary=self.load,
            unload_module=lambda *_: None,
            get_device_properties=lambda device: properties,
        )
        self.launcher_cls = self.launcher

    def load(self, name, cubin, shared, device):
        kernel = inspect(name, cubin, shared)
        self.compiled.append(kernel)
        return 1, 1, kernel.registers, kernel.spilled // 4, 1024

    def launcher(self, source, metadata):
        def run(x, y, z, *_):
            self.launched.append((source.name, (x, y, z)))

        return run

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # one kernel cache an architecture

    def get_current_stream(self, *_):
        return 0

    def get_device_capability(self, *_):
        return divmod(self.target.arch, 10)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind):
        return kind


def use(cc: int) -> FakeCuda:
    fake = FakeCuda(cc)
    driver.set_active(fake)
    return fake
