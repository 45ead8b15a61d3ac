"""Mutants of the kernels, by hand: a bug each of a kind that kernels have had. tests/trust/kernel_mutants.py
builds them one by one, and the tests named beside each must fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    path: str
    bug: str
    old: str  # stands in the file once
    new: str
    tests: str  # what pytest is told; for csrc/cuda nothing, the emulation has one program
    isa: str = (
        ""  # the instruction set whose file is built with the bug, and which runs; all if empty
    )
