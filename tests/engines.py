"""Fixtures for a test file to take as its own: an engine, and a look at its pages after each test. And how
many steps an engine takes at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pyttc.engine import Engine

from . import tiny_models
from .pages import check_engine


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Whose pages hold NaN where nobody wrote."""
    folder = tiny_models.make("llama", tmp_path_factory.mktemp("llama"))
    engine = Engine.from_pretrained(folder, memory="32MiB")
    engine.pool.k.fill_(torch.nan)
    engine.pool.v.fill_(torch.nan)
    return engine


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Of one layer, few pages, and paths that do not end by themselves."""
    folder = tiny_models.make("llama", tmp_path_factory.mktemp("llama"), num_hidden_layers=1)
    engine = Engine.from_pretrained(folder, memory="1MiB")
    engine.eos = []
    return engine


@pytest.fixture
def no_eos(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine, whose paths do not end by themselves."""
    monkeypatch.setattr(engine, "eos", [])
    return engine


@pytest.fixture(autouse=True)
def nothing_leaks(engine: Engine) -> Iterator[None]:
    yield
    gc.collect()  # an exception that a test held, and the frames it went through, are a cycle
    check_engine(engine)


def count_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of steps of each native call that takes several."""
    steps = engine.model.steps
    taken: list[int] = []
    assert steps is not None

    def counted(*args: Any, **named: Any) -> Any:
        hidden, drawn = steps(*args, **named)
        taken.append(len(drawn.tokens))
        return hidden, drawn

    monkeypatch.setattr(engine.model, "steps", counted)
    return taken
