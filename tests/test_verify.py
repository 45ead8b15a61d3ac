"""`pyttc verify` holds on this build, and a build that is broken in any one way fails it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pyttc
from pyttc.dispatch import ops
from pyttc.engine.cache import PathCache
from pyttc.verify import checks, verify

NAMES = [name for name, _, _ in checks()]


def failures(name: str) -> list[str]:
    return next(run()[1] for check, _, run in checks() if check == name)


def test_everything_holds_here() -> None:
    for check in verify():
        assert check.passed, (check.name, check.failures)
        assert check.compared > 0


def broken(monkeypatch: pytest.MonkeyPatch, op: str, change: Callable[..., Any]) -> None:
    native = ops[op].impls["native"]
    monkeypatch.setattr(native, "run", change(native.run))


def off_by_a_little(run: Callable[..., Any]) -> Callable[..., Any]:
    """The last element of the first floating-point output, or of what is written, is 1 % larger."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        outputs = (args[2:4] if len(args) == 5 else args[:2]) if result is None else result
        first = next(t for t in outputs if t.is_floating_point())
        if first.numel():
            at = tuple(n - 1 for n in first.shape)
            first[at] = first[at] * 1.01 + 0.01
        return result

    return wrong


@pytest.mark.parametrize("op", sorted(ops))
def test_a_kernel_that_is_a_little_off_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if op == "select_beams":  # its scores are sums, of which the last may be -inf

        def wrong_tie(run: Callable[..., Any]) -> Callable[..., Any]:
            def flipped(*args: Any, **kwargs: Any) -> Any:
                parents, tokens, scores = run(*args, **kwargs)
                return parents, tokens, scores.flip(-1)

            return flipped

        broken(monkeypatch, op, wrong_tie)
    else:
        broken(monkeypatch, op, off_by_a_little)
    assert failures(f"{op}, native against the reference")


def depends_on_the_batch(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out, lse = run(q, *args, **kwargs)
        scale = 1 + 2.0**-8 * (q.shape[1] + 0.5 * torch.get_num_threads())
        return out * scale, lse

    return wrong


@pytest.mark.parametrize("axis", ["batch and order of rows", "threads", "page size, dense or tree"])
def test_bits_that_depend_on_the_batch_are_found(
    axis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "shared_prefix_attention", depends_on_the_batch)
    assert failures(f"bits, native: {axis}")


def reads_its_neighbours(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(logits: torch.Tensor, *args: Any) -> Any:
        out = run(logits, *args)
        out[4].add_(logits.isnan().any() * 1e-3)
        return out

    return wrong


def test_a_row_that_reads_its_neighbours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "sample", reads_its_neighbours)
    assert failures("bits, native: what the neighbours hold")


def hotter(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(
        logits: Any, seed: Any, path_ids: Any, positions: Any, temperature: Any = 1.0, *rest: Any
    ) -> Any:
        return run(logits, seed, path_ids, positions, temperature * 1.02, *rest)

    return wrong


def later(run: Callable[..., Any]) -> Callable[..., Any]:
    """Each token in 500 is the next one."""

    def wrong(logits: torch.Tensor, seed: Any, path_ids: torch.Tensor, *rest: Any) -> Any:
        out = run(logits, seed, path_ids, *rest)
        out[0].add_((path_ids % 500 == 0).long()).clamp_max_(logits.shape[1] - 1)
        return out

    return wrong


def test_draws_that_are_off_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        broken(patch, "sample", hotter)
        assert failures("distribution of draws on cpu")
    with monkeypatch.context() as patch:
        broken(patch, "sample", later)
        assert failures("draws on cpu against an exact inverse CDF")


def test_a_cache_that_leaks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    give_back = PathCache._give_back

    def forgets_a_page(self: PathCache, pages: Any) -> None:
        give_back(self, pages)
        self._pages_left -= pages.size > 2

    monkeypatch.setattr(PathCache, "_give_back", forgets_a_page)
    assert failures("pages: nothing lost, freed twice or seen by another path")


def test_paths_that_share_random_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyttc.engine import paths

    fork = paths.Paths.fork

    def all_alike(self: Any, times: int, **options: Any) -> Any:
        return fork(self, times, **{**options, "start": 0}).select([0] * times)

    monkeypatch.setattr(paths.Paths, "fork", all_alike)
    assert failures("a model on cpu: sharing, batch and order of paths")


def test_an_exception_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel")

    monkeypatch.setattr("pyttc.verify.checks", lambda: [("one", "numbers", fails)])
    (check,) = verify()
    assert not check.passed and check.failures == ["RuntimeError: no kernel"]
    assert pyttc.__version__ and NAMES
