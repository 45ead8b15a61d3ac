"""Who may touch the pages of an engine: paths are not copied."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyttc.engine import Engine
from tests import tiny_models
from tests.pages import check_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tiny_models.make("llama", tmp_path_factory.mktemp("llama"), num_hidden_layers=1)
    engine = Engine.from_pretrained(folder, memory="1MiB")
    engine.eos = []
    return engine


@pytest.fixture(autouse=True)
def nothing_leaks(engine: Engine) -> Any:
    yield
    gc.collect()
    check_engine(engine)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_holds_pages_is_not_copied(engine: Engine, duplicate: Callable[[Any], object]) -> None:
    paths = engine.prefill("the steps").fork(4, seed=0).decode(max_new_tokens=20)
    for thing, instead in (
        (paths, r"fork\(\) or select\(\)"),
        (engine, "from_pretrained"),
        (engine.pool, "from_pretrained"),
        (engine.cache, "from_pretrained"),
    ):
        with pytest.raises(TypeError, match=f"^{type(thing).__name__}: can be neither.*{instead}"):
            duplicate(thing)
    gc.collect()
    check_engine(engine, paths)
    assert torch.equal(copy.deepcopy(paths.tokens), paths.tokens)
    assert copy.deepcopy(paths.cost).ran == paths.cost.ran
