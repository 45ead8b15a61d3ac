"""The engine on the device: the tokens of transformers, and of the engine on the CPU."""

from typing import Any

import numpy as np
import pytest
import torch

from pyttc.engine import Engine, LinearHead

from .. import tiny_models
from ..common import written


def load(folder: str, device: str, dtype: torch.dtype = torch.float32) -> Engine:
    engine = Engine.from_pretrained(folder, device, dtype, memory="64MiB")
    engine.pool.k.fill_(torch.nan)
    engine.pool.v.fill_(torch.nan)
    return engine


def prompts(count: int, longest: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 320, int(rng.integers(1, longest))).tolist() for _ in range(count)]


@pytest.mark.parametrize("kind", tiny_models.CONFIGS)
def test_greedy_tokens_are_those_of_transformers(kind: str, tmp_path: Any) -> None:
    folder = tiny_models.make(kind, tmp_path)
    given = prompts(40, 60, seed=0)
    got = written(load(folder, "cuda").prefill(given).decode(max_new_tokens=12, temperature=0))
    model = tiny_models.plain_model(folder)
    assert got == [tiny_models.plain_loop(model, prompt, 12) for prompt in given]


def test_sampled_tokens_are_those_of_the_cpu(tmp_path: Any) -> None:
    """float32; a draw within an ulp of a boundary may fall on its other side, and its path with it."""
    folder = tiny_models.make("llama", tmp_path)
    settings: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "min_p": 0.01, "confidence": 4}
    runs = []
    for device in ("cpu", "cuda"):
        root = load(folder, device).prefill(prompts(8, 60, seed=1))
        paths = root.fork(32, seed=0).decode(until="e", max_new_tokens=12, **settings)
        again = paths.select(np.arange(0, 256, 2)).fork(2).append("then").decode(max_new_tokens=8)
        scores = again.score(LinearHead(torch.linspace(-1, 1, 64)))
        runs.append((written(again), scores, again.logprobs, again.confidence))
    same = [a == b for a, b in zip(runs[0][0], runs[1][0], strict=True)]
    assert sum(same) >= len(same) - 2
    rows = np.flatnonzero(same)
    width = min(run[2].shape[1] for run in runs)
    for a, b in zip(*(run[1:] for run in runs), strict=True):
        assert a.device.type == b.device.type == "cpu"
        a, b = (t[rows][:, :width] if t.dim() == 2 else t[rows] for t in (a, b))
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("hidden", [64, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neither_the_batch_nor_sharing_shows_in_the_bits(
    dtype: torch.dtype, hidden: int, kind: str, tmp_path: Any
) -> None:
    """Wide, too: torch's mean over few wide rows depends on how many they are."""
    engine = load(tiny_models.make(kind, tmp_path, hidden_size=hidden), "cuda", dtype)
    given = prompts(70, 60, seed=2)
    everyone = engine.prefill(given).decode(max_new_tokens=4)
    for n in (1, 2, 3, 8, 17, 33, 64):
        part = engine.prefill(given[:n], salt=None).decode(max_new_tokens=4)
        assert written(part) == written(everyone)[:n]
        assert torch.equal(part.hidden(), everyone.hidden()[:n])
    many = engine.prefill(given[0] * 30).fork(64, seed=1).decode(max_new_tokens=20)
    few = engine.prefill(given[0] * 30, salt=None).fork(4, seed=1, start=7)
    assert written(few.decode(max_new_tokens=20)) == written(many)[7:11]
    del everyone, part, many, few
    assert engine.free_pages == engine.pool.pages


def test_a_step_reads_nothing_back_but_its_tokens(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning attention needs the tree on the host, where the engine has it anyway."""
    engine = load(tiny_models.make("llama", tmp_path), "cuda")
    paths = engine.prefill([3] * 100).fork(8, seed=0).decode(max_new_tokens=3)
    read, cpu = [], torch.Tensor.cpu

    def counted(self: torch.Tensor, *args: Any) -> torch.Tensor:
        if self.is_cuda:
            read.append(list(self.shape))
        return cpu(self, *args)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    paths.logits(np.arange(8))
    assert read == []
    paths.decode(max_new_tokens=5)
    assert len(read) <= 3 * 5 and {tuple(shape) for shape in read} == {(8,)}


def test_generate_runs_on_pyttc_kernels(tmp_path: Any) -> None:
    import transformers

    from pyttc.engine import register

    register()
    folder = tiny_models.make("llama", tmp_path)
    ids = torch.tensor([[20, 21, 22, 23, 24, 25]])
    arguments: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
    expected = tiny_models.plain_model(folder).generate(ids, **arguments)
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="pyttc")
    assert torch.equal(ours.cuda().generate(ids.cuda(), **arguments).cpu(), expected)
