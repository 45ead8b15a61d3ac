"""The pass through models of the Llama family, and the native layers it is made of."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyttc import _C, PrefixTree
from pyttc.engine import Engine, llama
from pyttc.engine.attention import Step
from tests import tiny_models
from tests.common import run_below, same, spread, threads

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (2, 8, 16, 70, 768)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def rms_norm(x: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """As transformers writes it."""
    if added is not None:
        x += added
    wide = x if x.dtype is torch.float64 else x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * scaled.to(x.dtype)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]


def worse(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether the error is more than twice theirs."""
    mine, other = ((t.double() - exact).abs().max() for t in (ours, theirs))
    return bool(mine > 2 * other + 2**-22)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype, size: int) -> None:
    for shape in ((5, size), (3, 4, size)):
        x, added, weight = drawn(shape, shape, (size,), dtype=dtype)
        for given in (None, added):
            native, torchs, exact = spread(x), x.clone(), x.double()
            out = torch.full_like(x, torch.nan)
            _C.rms_norm(native, None if given is None else spread(given), weight, 1e-6, out, 1)
            theirs = rms_norm(torchs, given, weight)
            right = rms_norm(exact, None if given is None else given.double(), weight.double())
            assert same(native, torchs)
            assert not worse(out, theirs, right)
            _C.rms_norm(torchs, None, weight, 1e-6, torchs, 1)  # in place
            assert same(torchs, out)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_has_the_bits_of_torch(dtype: torch.dtype, size: int) -> None:
    x, cos, sin = drawn((7, 3, size), (7, size), (7, size), dtype=dtype)
    native = spread(x)
    _C.rotary(native, spread(cos), spread(sin), 1)
    assert same(native, rotated(x, cos, sin))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype, size: int) -> None:
    gate, up = (20 * t for t in drawn((6, size), (6, size), dtype=dtype))
    out = torch.full_like(gate, torch.nan)
    _C.silu_mul(spread(gate), spread(up), out, 1)
    exact = F.silu(gate.double()) * up.double()
    theirs = F.silu(gate) * up
    assert not worse(out / (1 + exact.abs()), theirs / (1 + exact.abs()), exact / (1 + exact.abs()))
    _C.silu_mul(gate, up, gate, 1)  # over one of its operands
    assert same(gate, out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_knows_nothing_of_other_rows_or_threads(dtype: torch.dtype) -> None:
    x, weight, cos, sin = drawn((70, 600), (600,), (70, 20), (70, 20), dtype=dtype)
    rows = [3, 69, 3, 0]

    def run(at: Any, count: int) -> list[torch.Tensor]:
        part = x[at].contiguous()
        normed, gated, turned = torch.empty_like(part), torch.empty_like(part), part.clone()
        _C.rms_norm(part, None, weight, 1e-6, normed, count)
        _C.silu_mul(part, part, gated, count)
        _C.rotary(turned.view(-1, 30, 20), cos[at], sin[at], count)
        return [normed, gated, turned]

    for alone, together in zip(run(rows, 1), run(slice(None), 3), strict=True):
        assert same(alone, together[rows])


def test_what_does_not_fit_is_refused() -> None:
    x, weight = torch.ones(4, 8), torch.ones(8)
    out = torch.full((4, 8), 7.0)
    for call, arguments in (
        (_C.rms_norm, (x, None, weight[:7], 1e-6, out)),
        (_C.rms_norm, (x, x[:3], weight, 1e-6, out)),
        (_C.rms_norm, (x, None, weight, 1e-6, out.bfloat16())),
        (_C.rms_norm, (x[0], None, weight, 1e-6, out[0])),
        (_C.rotary, (out.view(4, 2, 4), x, x)),
        (_C.rotary, (out.view(4, 1, 8), x[:3], x)),
        (_C.rotary, (out, x, x)),
        (_C.silu_mul, (x, x[:, :7], out)),
        (_C.silu_mul, (x, x, out.double())),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            call(*arguments, 1)
    assert (out == 7).all()


def test_a_pass_that_does_not_fit_is_refused(tmp_path: Any) -> None:
    engine = Engine.from_pretrained(tiny_models.make("llama", tmp_path), memory="8MiB")
    run, pool = engine.model._pass, engine.pool
    tree = PrefixTree([-1], [[0]], [1], [0], engine.cache.page_size)
    token, at = torch.tensor([3]), torch.tensor([0])

    def step(
        k: torch.Tensor = pool.k,
        slots: torch.Tensor = at,
        tokens: torch.Tensor = token,
        positions: torch.Tensor = at,
    ) -> torch.Tensor:
        return run(tokens, positions, Step(k, pool.v, slots, tree))

    assert step().isfinite().all()
    layers, vocab = run.layers, run.embedding.shape[0]
    for wrong in (
        {"k": pool.k[1:]},
        {"k": pool.k.half()},
        {"slots": torch.tensor([2**40])},
        {"tokens": token.int()},
        {"tokens": torch.tensor([vocab])},
        {"tokens": torch.tensor([-1])},
        {"positions": torch.tensor([-1])},
        {"positions": torch.tensor([0, 1])},
    ):
        with pytest.raises(ValueError, match=f"fit|{next(iter(wrong))}: element 0"):
            step(**wrong)
    for wrong in ([], layers[1:], [layers[0]._replace(down=layers[0].out), *layers[1:]]):
        run.layers = wrong
        with pytest.raises(ValueError, match="fit"):
            step()


@pytest.mark.parametrize("kind", tiny_models.FAMILY)
def test_the_pass_gives_what_the_modules_give(kind: str, tmp_path: Any) -> None:
    folder = tiny_models.make(kind, tmp_path)
    logits = []
    for invariant in (True, False):  # False leaves all to the modules
        engine = Engine.from_pretrained(folder, memory="8MiB", batch_invariant=invariant)
        assert (engine.model._pass is not None) == invariant
        paths = engine.prefill([[3, 5, 7] * 9, [11]]).fork(2, seed=0)
        for tokens in ([4] * 4, [9, 8, 7, 6]):
            paths.append([[t] for t in tokens])
        logits.append(paths.logits(np.arange(4)))
    torch.testing.assert_close(*logits, rtol=0, atol=2e-5 * float(logits[1].std()) * 10)


def test_positions_show_nowhere_in_when_they_were_prepared(tmp_path: Any, monkeypatch: Any) -> None:
    """Rotary embeddings come from a table, which grows."""
    folder, found, prompt = tiny_models.make("llama", tmp_path), [], [3, 5, 7] * 30
    for size in (1, 16, 1024):
        monkeypatch.setattr(llama, "POSITIONS", size)
        paths = Engine.from_pretrained(folder, memory="8MiB").prefill([prompt, [11]]).fork(2)
        paths.decode(max_new_tokens=3, temperature=0.0)
        found.append((paths.tokens, paths.hidden()))
    for tokens, hidden in found[1:]:
        assert torch.equal(tokens, found[0][0]) and same(hidden, found[0][1])


def test_weights_stay_the_models_own(tmp_path: Any) -> None:
    engine = Engine.from_pretrained(tiny_models.make("qwen2", tmp_path), memory="8MiB")
    model = engine.model.model
    kept = tiny_models.plain_model(str(tmp_path)).state_dict()
    held = model.state_dict()
    assert held.keys() == kept.keys() and all(same(held[name], kept[name]) for name in kept)
    attention = model.base_model.layers[0].self_attn
    before = engine.prefill([5, 6]).logits(np.arange(1))
    with torch.no_grad():
        attention.v_proj.weight.zero_()
    assert not same(engine.prefill([5, 6], salt=None).logits(np.arange(1)), before)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files")
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_file_of_weights_is_let_go(kind: str, tmp_path: Path) -> None:
    engine = Engine.from_pretrained(tiny_models.make(kind, tmp_path), memory="8MiB")
    assert engine.prefill([5, 6]).logits(np.arange(1)).isfinite().all()
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_what_the_pass_does_not_know_goes_through_the_modules(tmp_path: Any) -> None:
    folder = tiny_models.make("gemma2", tmp_path)
    assert Engine.from_pretrained(folder, memory="8MiB").model._pass is None
    model = tiny_models.plain_model(tiny_models.make("llama", tmp_path))
    assert llama.serves(model)
    hook = model.base_model.layers[1].register_forward_hook(lambda *_: None)
    assert not llama.serves(model)
    hook.remove()
    model.config.hidden_act = "gelu"
    assert not llama.serves(model)


def test_threads_show_nowhere(tmp_path: Any) -> None:
    engine = Engine.from_pretrained(tiny_models.make("qwen3", tmp_path), memory="8MiB")
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(engine.prefill([[7] * 300, [8]], salt=None).logits(np.arange(2)))
    assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("level", ["generic", "avx2"])
def test_other_instruction_sets(level: str) -> None:
    run_below(level, __file__, "rms_norm or rotation or silu or row or pass_gives")
