"""The fuzz targets on their seeds, on what a fuzzer found, and on a few random bytes."""

import importlib
from pathlib import Path

import pytest

from tests.fuzz import TARGETS, seeds

FUZZ = Path(__file__).parent / "fuzz"


@pytest.mark.parametrize("name", TARGETS)
def test_target(name):
    module = importlib.import_module(f"tests.fuzz.{name}")
    finds = sorted((FUZZ / "finds" / name).glob("*"))
    for data in (*module.SEEDS, *(find.read_bytes() for find in finds), *seeds(150)):
        module.target(data)


def test_every_target_is_listed():
    modules = {path.stem for path in FUZZ.glob("*.py")} - {"__init__", "run"}
    assert modules == set(TARGETS)
