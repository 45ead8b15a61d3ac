"""`pyttc info`: versions, processor, CUDA, and what serves each op."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from .. import _C, __version__
from ..dispatch import IMPLS, Op, ops
from .common import BadInput


def add(commands: Any) -> None:
    parser = commands.add_parser("info", help="versions, processor, CUDA, and what serves each op")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    try:
        found = information()
    except RuntimeError as error:  # PYTTC_CPU_ISA
        raise BadInput(str(error)) from None
    print(json.dumps(found, indent=2) if args.json else readable(found))
    return 0


def information() -> dict[str, Any]:
    """What `pyttc info` says.

    Returns:
        versions: of pyttc, torch, triton (None: not installed) and Python.
        cpu: model; isa, the instruction set in use, and isa_of_machine, the best that would work here
            (PYTTC_CPU_ISA lowers it); threads, torch's; cores.
        cuda: built, the targets pyttc._cuda was compiled for (None: this build has none); devices.
        ops: {op: {implementation: None if it can run here, else why not}}.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "versions": {
            "pyttc": __version__,
            "torch": torch.__version__,
            "triton": version("triton"),
            "python": platform.python_version(),
        },
        "cpu": {
            "model": cpu_model(),
            "isa": _C.isa(),
            "isa_of_machine": _C.isa_of_machine(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        },
        "cuda": {
            "built": cuda_targets(),
            "devices": [torch.cuda.get_device_name(i) for i in range(devices)],
        },
        "ops": {
            name: {impl: obstacle(op, impl, devices > 0) for impl in IMPLS}
            for name, op in sorted(ops.items())
        },
    }


def obstacle(op: Op, impl: str, gpu: bool) -> str | None:
    """Why no call can be served by `impl` here, or None."""
    chosen = op.impls.get(impl)
    if chosen is None:
        return "not written for this op"
    if chosen.missing:
        return chosen.missing
    if chosen.device == "cuda" and not gpu:
        return "no CUDA device here"
    return None


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    try:
        named = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        named = None
    return named[1].strip() if named else platform.processor() or platform.machine()


def cuda_targets() -> str | None:
    if importlib.util.find_spec("pyttc._cuda") is None:
        return None
    return str(importlib.import_module("pyttc._cuda").archs)


def readable(found: dict[str, Any]) -> str:
    versions, cpu, cuda = found["versions"], found["cpu"], found["cuda"]
    built = f"kernels for {cuda['built']}" if cuda["built"] else "no kernels in this build"
    lines = [
        ", ".join(f"{name} {number or 'not installed'}" for name, number in versions.items()),
        f"CPU: {cpu['model']}, {cpu['threads']} threads on {cpu['cores']} cores; "
        f"instruction set {cpu['isa']}, the best here {cpu['isa_of_machine']}",
        f"CUDA: {built}; {', '.join(cuda['devices']) or 'no device'}",
        "",
        f"{'op':26}" + "".join(f"{impl:11}" for impl in IMPLS),
    ]
    reasons: dict[str, list[str]] = {}
    for name, impls in found["ops"].items():
        lines.append(
            f"{name:26}" + "".join(f"{'no' if why else 'yes':11}" for why in impls.values())
        )
        for impl, why in impls.items():
            if why:
                reasons.setdefault(f"{impl}: {why}", []).append(name)
    lines += ["", *(f"no {why} ({', '.join(names)})" for why, names in reasons.items())]
    return "\n".join(line.rstrip() for line in lines).rstrip()
