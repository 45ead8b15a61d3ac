"""A few seconds of the soak, and that it finds what it looks for."""

import mmap
from typing import Any

import pytest
import torch

from tests.trust.soak import SLOPE, Probe, Samples, Traffic, slope, small_engine, soak


@pytest.fixture(scope="module")
def engine() -> Any:
    return small_engine("2MiB")


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.trust.soak.PROBES", 3)


def run(traffic: Traffic, minutes: int = 2) -> tuple[Samples, list[str]]:
    said: list[str] = []
    return soak(traffic, minutes, say=said.append, minute=0.7), said


def test_random_traffic_loses_nothing(engine: Any) -> None:
    traffic = Traffic(engine, seed=1)
    samples, said = run(traffic, 3)
    assert len(samples.memory) == len(said) == 3
    assert set(traffic.done) >= {"prefill", "fork", "decode", "append", "select", "free"}
    assert engine.free_pages == engine.pool.pages


def test_a_leak_of_memory_shows(engine: Any) -> None:
    traffic, held = Traffic(engine, seed=2), []
    free = traffic.free

    def leaky(paths: Any) -> None:
        free(paths)
        held.append(mmap.mmap(-1, 1 << 19))  # which no earlier test has left room for
        held[-1].write(b"x" * (1 << 19))

    traffic.free = leaky  # type: ignore[method-assign]
    samples, _ = run(traffic, 3)
    assert samples.memory_slope() > SLOPE


def test_a_page_that_is_lost_shows(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release, forgotten = engine.cache.release, []

    def forgetful(leaves: Any) -> None:
        if leaves.size and not forgotten:
            forgotten.append(leaves[0])
            leaves = leaves[1:]
        release(leaves)

    monkeypatch.setattr(engine.cache, "release", forgetful)
    with pytest.raises(AssertionError):
        run(Traffic(engine, seed=3))
    assert forgotten


def test_another_token_shows() -> None:
    probe = Probe(small_engine("2MiB"))
    probe.run()
    probe.engine.pool.k.zero_()
    probe.engine.model.head._parameters["weight"][3:9] += 0.5
    with pytest.raises(AssertionError, match="other tokens"):
        probe.run()


def test_one_outlier_does_not_make_a_slope() -> None:
    x = [float(i) for i in range(30)]
    y = [2 * v for v in x]
    y[7] = 1e9
    assert slope(x, y) == 2 and not torch.tensor(slope(x, [1.0] * 30)).item()
