"""A copy of the source, built by itself: what is changed or instrumented there touches nothing else."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTTC_CUDA": "0", "PYTTC_DEV": "1"}


class Workshop:
    def __init__(self, name: str, flags: str = "") -> None:
        self.root = ROOT / "build" / name
        self.environment = {**ENVIRONMENT, "PYTTC_CFLAGS": flags, "PYTHONDONTWRITEBYTECODE": "1"}
        self.copy()

    def copy(self) -> None:
        """Brings what git tracks, or would, up to date; what is the same is left alone, so that a build is
        short."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in listed.stdout.split("\0"):
            source, copy = ROOT / name, self.root / name
            if source.is_file() and not (copy.exists() and filecmp.cmp(source, copy, False)):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        kernels = self.root / "pyttc/triton_kernels"
        if not kernels.exists():
            kernels.symlink_to("../triton_kernels")

    def build(self) -> None:
        """Compiles what changed and links; an error ends the program with the compiler's words."""
        for module in self.root.glob("pyttc/*.so"):
            module.unlink()
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)

    @contextmanager
    def changed(self, path: str, old: str, new: str) -> Iterator[None]:
        """The file with `old`, which stands there once, replaced by `new`."""
        file = self.root / path
        text = file.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{path} holds {text.count(old)} times, expected once:\n{old}")
        file.write_text(text.replace(old, new))
        try:
            yield
        finally:
            file.write_text(text)  # newer than what was made of it

    def test(
        self, *arguments: str, timeout: float | None = None, **environment: str
    ) -> tuple[int | None, str]:
        """pytest's exit code, None when it took longer than `timeout` seconds, and what it wrote."""
        command = [sys.executable, "-W", "ignore", "-m", "pytest", "-p", "no:cacheprovider"]
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=self.root,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=os.setpgrp,
        )
        try:
            text = process.communicate(timeout=timeout)[0]
            return process.returncode, text
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return None, process.communicate()[0]
