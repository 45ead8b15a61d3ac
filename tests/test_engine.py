"""The engine against plain transformers: the same tokens, whatever else runs beside a path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from benchmarks import models
from pyttc import sample
from pyttc.engine import Engine, OutOfPages, Unsupported, attention
from pyttc.engine import engine as engine_module
from tests import tiny_models
from tests.common import threads, written


def load(kind: str, folder: Any, dtype: torch.dtype = torch.float32, **changes: Any) -> Engine:
    engine = Engine.from_pretrained(
        tiny_models.make(kind, folder, dtype, **changes), memory="48MiB"
    )
    # what nobody stored must never be read
    engine.pool.k.fill_(torch.nan)
    engine.pool.v.fill_(torch.nan)
    return engine


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load("llama", tmp_path_factory.mktemp("llama"))


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 320, int(rng.integers(1, longest))).tolist() for _ in range(count)]


def test_greedy_tokens_are_those_of_transformers_on_200_prompts(llama: Engine) -> None:
    given = prompts(200, 40)
    got = written(llama.prefill(given).decode(max_new_tokens=12, temperature=0))
    model = tiny_models.plain_model(llama.model.config.name_or_path)
    assert got == [tiny_models.plain_loop(model, p, 12) for p in given]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", tiny_models.CONFIGS)
def test_every_architecture_is_served_in_half_precision(
    kind: str, dtype: torch.dtype, tmp_path: Any
) -> None:
    """Loading compares logits with transformers'; decoding must then agree with a prompt."""
    engine = load(kind, tmp_path, dtype)
    assert engine.model.dtype is engine.pool.k.dtype is dtype
    given = prompts(8, 40, seed=8)
    paths = engine.prefill(given).decode(max_new_tokens=6, temperature=0.7, until=[])
    assert not paths.logprobs[:, 0].isnan().any()
    whole = [[*prompt, *row] for prompt, row in zip(given, written(paths), strict=True)]
    assert torch.equal(engine.prefill(whole, salt=None).hidden(), paths.hidden())


def test_a_checkpoint_changes_its_dtype_when_asked(tmp_path: Any) -> None:
    folder = tiny_models.make("llama", tmp_path)
    assert Engine.from_pretrained(folder, memory="1MiB").model.dtype is torch.float32
    changed = Engine.from_pretrained(folder, dtype=torch.bfloat16, memory="1MiB")
    assert changed.model.dtype is changed.pool.v.dtype is torch.bfloat16


@pytest.mark.parametrize("kind", [k for k in tiny_models.CONFIGS if k != "llama"])
def test_every_architecture_gives_the_tokens_of_transformers(kind: str, tmp_path: Any) -> None:
    engine = load(kind, tmp_path)
    given = prompts(12, 40, seed=1)
    got = written(engine.prefill(given).decode(max_new_tokens=16, temperature=0))
    model = tiny_models.plain_model(str(tmp_path))
    assert got == [tiny_models.plain_loop(model, p, 16) for p in given]


def test_sampled_tokens_are_those_of_a_plain_loop_on_200_prompts(llama: Engine) -> None:
    model = tiny_models.plain_model(llama.model.config.name_or_path)
    given = prompts(200, 40, seed=9)
    paths = llama.prefill(given, seed=3).fork(1)
    keys, ids = paths.sample_identity(np.arange(200))

    def choose(logits: torch.Tensor, position: int, i: int) -> int:
        who = {"seed": int(keys[i]), "path_ids": torch.tensor([int(ids[i])])}
        return int(sample(logits, **who, positions=torch.tensor([position])).tokens)

    paths.decode(max_new_tokens=8)
    assert written(paths) == [
        tiny_models.plain_loop(model, prompt, 8, lambda x, at, i=i: choose(x, at, i))
        for i, prompt in enumerate(given)
    ]


def test_sampled_tokens_are_those_of_a_plain_loop(llama: Engine) -> None:
    model = tiny_models.plain_model(llama.model.config.name_or_path)
    settings: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
    for prompt in prompts(6, 40, seed=2):
        forks = llama.prefill(prompt).fork(4, seed=5)
        keys, ids = forks.sample_identity(np.arange(4))

        def choose(
            logits: torch.Tensor, position: int, k: int, keys: Any = keys, ids: Any = ids
        ) -> int:
            draw = sample(
                logits,
                seed=int(keys[k]),
                path_ids=torch.tensor([int(ids[k])]),
                positions=torch.tensor([position]),
                **settings,
            )
            return int(draw.tokens)

        expected = [
            tiny_models.plain_loop(model, prompt, 10, lambda x, at, k=k: choose(x, at, k))
            for k in range(4)
        ]
        assert written(forks.decode(max_new_tokens=10, **settings)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits_do_not_depend_on_the_batch(dtype: torch.dtype, tmp_path: Any) -> None:
    engine = load("llama", tmp_path, dtype)
    given = prompts(70, 24, seed=3)

    def states(which: list[int]) -> list[torch.Tensor]:
        paths = engine.prefill([given[i] for i in which])
        first = paths.hidden()
        paths.append([[given[i][0]] for i in which])
        second = paths.hidden()
        return [first, second, paths.logits(np.arange(len(which)))]

    everyone = states(list(range(70)))
    for n in [*range(1, 20), 31, 32, 33, 47, 64, 65, 70]:
        for a, b in zip(everyone, states(list(range(n))), strict=True):
            assert torch.equal(a[:n], b), n
    for count in (2, 3):
        with threads(count):
            for a, b in zip(everyone, states([69, 3, 20]), strict=True):
                assert torch.equal(a[[69, 3, 20]], b), count


def test_a_path_is_the_same_whatever_n_neighbours_order_and_sharing(llama: Engine) -> None:
    def run(paths: Any) -> list[list[int]]:
        return written(paths.decode(max_new_tokens=8, temperature=1.0))

    a, b = prompts(2, 60, seed=4)
    many = run(llama.prefill(a).fork(256, seed=1))
    assert run(llama.prefill(a).fork(64, seed=1)) == many[:64]
    assert run(llama.prefill(a, salt=None).fork(1, seed=1, start=17)) == many[17:18]
    both = run(llama.prefill([b, a], salt=None).fork(8, seed=1))
    assert both[8:] == many[:8] and both[:8] == run(llama.prefill(b).fork(8, seed=1))
    shuffled = llama.prefill(a).fork(16, seed=1).select(list(range(15, -1, -1)))
    assert run(shuffled) == many[:16][::-1]
    assert run(llama.prefill(a).fork(64, seed=2)) != many[:64]
    assert len({tuple(row) for row in many}) > 250


def test_sharing_and_chunks_do_not_change_bits(
    llama: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = prompts(1, 2, seed=5)[0] * 90
    expected = llama.prefill(long, salt=None).hidden()
    held = llama.prefill(long[:70])
    free = llama.free_pages
    shared = llama.prefill(long)
    assert free - llama.free_pages == 2  # of 6 pages, 4 are those of `held`
    assert torch.equal(shared.hidden(), expected)
    for chunk in (1, 7, 64):
        monkeypatch.setattr(engine_module, "CHUNK", chunk)
        assert torch.equal(llama.prefill(long, salt=None).hidden(), expected)
    # forced, a token has the bits it has in a prompt
    assert torch.equal(held.append(long[70:80]).append(long[80:]).hidden(), expected)


def test_prefixes_are_shared_between_callers_of_one_salt_only(llama: Engine) -> None:
    # one page that both share would show in the count; a read across tenants, as NaN
    long = prompts(1, 2, seed=7)[0] * 70
    full, whole = len(long) // 16, -(-len(long) // 16)

    def run(salt: Any, held: int) -> list[list[int]]:
        free = llama.free_pages
        paths = llama.prefill(long, seed=1, salt=salt)
        assert free - llama.free_pages == whole - held
        assert paths.cost.ran.prefilled == len(long) - 16 * held
        assert paths.cost.unshared.prefilled == len(long)
        kept.append(paths)
        forks = paths.fork(6)
        kept.append(forks)
        return written(forks.decode(max_new_tokens=12))

    kept: list[Any] = []
    expected = run("", 0)
    for salt, held in [
        ("a", 0),
        ("", full),
        (b"a", full),
        ("b", 0),
        (None, 0),
        (None, 0),
        ("b", full),
    ]:
        assert run(salt, held) == expected
    # what tenants without the first one's salt hold does not depend on the first one
    kept[0].select([])
    kept[1].select([])
    pages = {int(p) for leaf in kept[2].leaves for p in pages_of(llama, int(leaf))}
    outside = [p for p in range(llama.pool.pages) if p not in pages]
    llama.pool.k[:, outside] = llama.pool.v[:, outside] = torch.nan
    whole_prompt = llama.prefill(long, seed=1, salt="a")
    assert written(whole_prompt.fork(6).decode(max_new_tokens=12)) == expected
    for refused in (3, ["a"], 1.5):
        with pytest.raises(TypeError, match=r"^salt: got"):
            llama.prefill(long, salt=refused)


def pages_of(engine: Engine, leaf: int) -> list[int]:
    """The pages of a path."""
    cache, pages = engine.cache, []
    while leaf:
        held = -(-int(cache.length[leaf]) // cache.page_size)
        pages += cache.table[leaf, :held].tolist()
        leaf = int(cache.parent[leaf])
    return pages


def test_out_of_pages_leaves_paths_as_they_were(tmp_path: Any) -> None:
    folder = tiny_models.make("llama", tmp_path)
    page = Engine.from_pretrained(folder, memory="1MiB").pool.page_bytes
    engine = Engine.from_pretrained(folder, memory=10 * page)
    assert engine.required_pages([20], paths=8, new_tokens=30) == 2 + 8 * 3
    with pytest.raises(OutOfPages, match="needs 11 pages and 10 of 10 are free"):
        engine.prefill(list(range(2, 172)))
    assert engine.free_pages == 10
    root = engine.prefill(list(range(2, 22)))
    paths = root.fork(8, seed=0)
    with pytest.raises(OutOfPages) as caught:
        paths.decode(max_new_tokens=30, until=[])
    assert caught.value.free < caught.value.needed
    so_far = written(paths)
    assert all(row for row in so_far)
    paths.select([2]).decode(max_new_tokens=20)
    alone = engine.prefill(list(range(2, 22))).fork(1, seed=0, start=2)
    root.free()
    alone.decode(max_new_tokens=len(written(paths)[0]))
    assert written(alone) == written(paths)


def test_memory_is_what_the_unique_tokens_need(llama: Engine) -> None:
    prompt = prompts(1, 2, seed=6)[0] * 4096
    paths = llama.prefill(prompt).fork(64, seed=0)
    llama.eos, eos = [], llama.eos
    paths.decode(max_new_tokens=64)
    llama.eos = eos
    unique = (4096 + 64 * 64) * llama.pool.token_bytes
    assert llama.kv_bytes <= 1.1 * unique
    assert paths.cost.unshared.kv_bytes_held > 30 * unique
    assert paths.cost.ran.kv_bytes_held <= 1.1 * unique


def test_prompt_given_to_generate_on_pyttc_kernels(tmp_path: Any) -> None:
    for kind in tiny_models.CONFIGS:
        folder = tiny_models.make(kind, tmp_path / kind)
        from pyttc.engine import register

        register()
        eager = tiny_models.plain_model(folder)
        ours = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="pyttc"
        )
        ids = torch.tensor([[1, 1, 1, 7, 8, 9], [20, 21, 22, 23, 24, 25]])
        mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
        for keep in (slice(1, 2), slice(0, 2)):
            arguments = {"attention_mask": mask[keep], "do_sample": False, "max_new_tokens": 12}
            expected = eager.generate(ids[keep], **arguments)
            assert torch.equal(ours.generate(ids[keep], **arguments), expected)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("MambaConfig", "linear_attention"),
        ("GptOssConfig", "sinks"),
        ("DeepseekV3Config", "latent attention"),
        ("T5GemmaConfig", "encoder"),
        ("BloomConfig", "attention that can be replaced|trial pass"),
    ],
)
def test_models_that_cannot_be_served_are_refused(config: str, reason: str, tmp_path: Any) -> None:
    shape = {k: v for k, v in tiny_models.SHAPE.items() if k != "intermediate_size"}
    if config == "T5GemmaConfig":
        transformers.T5GemmaConfig().save_pretrained(tmp_path)
    else:
        made = getattr(transformers, config)(
            **shape,
            **({"intermediate_size": 64} if config != "BloomConfig" else {}),
            **({"num_local_experts": 2, "num_experts_per_tok": 1} if "Oss" in config else {}),
        )
        transformers.AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match=reason):
        Engine.from_pretrained(tmp_path, memory="8MiB")


def test_a_model_served_wrongly_would_be_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.make("gemma2", tmp_path)
    right = attention.prefix_tree_attention

    def no_softcap(*args: Any, softcap: float, **others: Any) -> Any:
        return right(*args, **others)

    monkeypatch.setattr(attention, "prefix_tree_attention", no_softcap)
    with pytest.raises(Unsupported, match="differ from transformers'"):
        Engine.from_pretrained(folder, memory="8MiB")


def test_invariance_is_refused_to_experts_and_has_a_switch(tmp_path: Any) -> None:
    shape = {**tiny_models.SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(**shape))
    model.save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match="batch_invariant=False"):
        Engine.from_pretrained(tmp_path, memory="8MiB")
    engine = Engine.from_pretrained(tmp_path, memory="8MiB", batch_invariant=False)
    plain = tiny_models.plain_model(str(tmp_path))
    (prompt,) = prompts(1, 40, seed=2)
    got = written(engine.prefill([prompt]).decode(max_new_tokens=8, temperature=0))
    assert got == [tiny_models.plain_loop(plain, prompt, 8)]


def test_pickled_weights_are_not_loaded(tmp_path: Any) -> None:
    folder = tiny_models.make("llama", tmp_path)
    torch.save(tiny_models.plain_model(folder).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        Engine.from_pretrained(folder, memory="8MiB")


def test_memory_is_known_before_a_run(tmp_path: Any) -> None:
    folder = tiny_models.make("llama", tmp_path)
    page = Engine.from_pretrained(folder, memory="1MiB").pool.page_bytes
    for length, paths, new in ((20, 8, 30), (32, 3, 16), (5, 1, 60), (33, 5, 1)):
        # the last token of a path is never stored
        probe = Engine.from_pretrained(folder, memory=1000 * page)
        needed = probe.required_pages([length], paths, new - 1)
        engine = Engine.from_pretrained(folder, memory=needed * page)
        engine.eos = []
        root = engine.prefill([3] * length)
        (root.fork(paths) if paths > 1 else root).decode(max_new_tokens=new)
        assert engine.required_pages([length], paths, new) >= needed


@pytest.mark.nightly
def test_host_takes_less_than_a_tenth_of_a_step() -> None:
    """125M parameters, 32 paths, one thread, bfloat16: see benchmarks.models for what is counted."""
    with threads(1):
        paths = models.engine("125M", torch.bfloat16, "256MiB").prefill([3] * 128).fork(32, seed=0)
        parts = models.step_parts(paths)
    assert parts["host"] < 0.1 * sum(parts.values()), parts


def test_rotary_embeddings_that_feel_the_batch_are_refused(tmp_path: Any) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(Unsupported, match="depend on the longest path"):
        Engine.from_pretrained(tiny_models.make("llama", tmp_path, rope_parameters=rope))
