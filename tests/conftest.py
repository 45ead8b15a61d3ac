"""Of the tests that search with a model which can do something: it is taught once. Files whose engine is
another have a fixture of that name themselves. And how all property tests run."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

import pyttc
from pyttc.engine import multi_step
from pyttc.search import budget
from pyttc.tasks.countdown_search import reward_head

from .countdown_models import teach

# How long an example takes depends on who else uses the machine.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> pyttc.Engine:
    return pyttc.Engine.from_pretrained(folder, memory="128MiB")


@pytest.fixture(scope="module")
def head(folder: Path) -> pyttc.LinearHead | None:
    return reward_head(folder)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Interrupts, also where the tests were started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def steps_at_any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many steps are taken at once does not depend on the machine."""
    monkeypatch.setattr(multi_step, "SECONDS", 1e6)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets' clock is 10 milliseconds later at each look, whatever the machine."""
    looks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(looks) / 100)
    monkeypatch.setattr(budget, "time", clock)
