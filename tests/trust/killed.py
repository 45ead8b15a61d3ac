"""Mutants that tests have killed are not run again while the file they change stays as it is: a run that was
interrupted goes on where it was, and one after new tests tries the survivors. `make clean` forgets them."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Killed:
    def __init__(self, name: str) -> None:
        self.file = ROOT / f"build/{name}.killed"
        self.file.parent.mkdir(exist_ok=True)
        self.file.touch()
        self.known = set(self.file.read_text().split())

    def key(self, path: str, mutant: object) -> str:
        return hashlib.sha256(f"{(ROOT / path).read_text()}{mutant!r}".encode()).hexdigest()[:20]

    def add(self, key: str) -> None:
        self.known.add(key)
        with self.file.open("a") as file:
            file.write(key + "\n")
