"""Weights that change under an engine: used at once, never mixed with what earlier ones left in pages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pyttc.engine import Engine, Unsupported, llama
from pyttc.engine.rows import RowsLinear
from tests import tiny_models
from tests.common import same
from tests.pages import check_engine

PROMPT = [3, 5, 7, 11] * 12
BIASED = {"attention_bias": True, "mlp_bias": True}
KINDS = {"qwen2": {}, "llama": BIASED, "qwen3": {}, "gemma2": {}}
State = dict[str, torch.Tensor]


def engine_of(kind: str, folder: Any, **changes: Any) -> tuple[Engine, Any]:
    """An engine over a model in memory, and that model."""
    model = tiny_models.plain_model(tiny_models.make(kind, folder, **changes))
    return Engine.from_model(model, memory="4MiB"), model


def logits(engine: Engine, **options: Any) -> torch.Tensor:
    return engine.prefill(PROMPT, **options).logits(np.arange(1))[0]


def theirs(model: Any) -> torch.Tensor:
    """The logits of a copy of the model that no engine ever saw."""
    fresh = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
    fresh.load_state_dict(model.state_dict())
    fresh.set_attn_implementation("eager")
    with torch.inference_mode():
        return fresh.eval()(torch.tensor([PROMPT])).logits[0, -1]


def other(state: State) -> State:
    """Other weights; those that are tied stay so."""
    generator = torch.Generator().manual_seed(0)
    made: dict[int, torch.Tensor] = {}
    for tensor in state.values():
        noise = torch.randn(tensor.shape, generator=generator)
        made.setdefault(tensor.data_ptr(), tensor + 0.2 * noise * (tensor.abs().mean() + 0.1))
    return {name: made[tensor.data_ptr()] for name, tensor in state.items()}


@torch.no_grad()
def in_place(engine: Engine, model: Any, state: State) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])


def assigned(engine: Engine, model: Any, state: State) -> None:
    model.load_state_dict(state, assign=True)


def replaced(engine: Engine, model: Any, state: State) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = state[name].clone()


def behind(engine: Engine, model: Any, state: State) -> None:
    for name, parameter in model.named_parameters():
        parameter.data.copy_(state[name])
    engine.weights_changed()


def stepped(engine: Engine, model: Any, state: State) -> None:
    """By an optimizer that writes without counting."""
    for name, parameter in model.named_parameters():
        parameter.grad = (parameter - state[name]).detach()
    torch.optim.SGD(model.parameters(), lr=1.0, fused=True).step()


def loaded(engine: Engine, model: Any, state: State) -> None:
    engine.load_weights(state)


def trained_elsewhere(engine: Engine, model: Any, state: State) -> None:
    """Names as named_parameters gives them, a tied weight once."""
    engine.load_weights({name: state[name] for name, _ in model.named_parameters()})


WAYS: list[Callable[[Engine, Any, State], None]] = [
    in_place, assigned, replaced, behind, stepped, loaded, trained_elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_changed_weights_are_taken_up(kind: str, way: Any, tmp_path: Path) -> None:
    """By a prefill, while paths of the old weights are alive; and again, after a second change."""
    engine, model = engine_of(kind, tmp_path, **KINDS[kind])
    for _ in range(2):
        alive, before = engine.prefill(PROMPT), logits(engine)
        way(engine, model, other(model.state_dict()))
        found = logits(engine)
        assert same(found, logits(engine, salt=None)) and not same(found, before)
        torch.testing.assert_close(found, theirs(model), rtol=0, atol=2e-4 * float(found.std()))
        assert len(alive.fork(2).decode(max_new_tokens=2)) == 2


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_decode_and_hidden_take_up_replaced_weights(kind: str, tmp_path: Path) -> None:
    engine, model = engine_of(kind, tmp_path)
    first, second = (engine.prefill(PROMPT) for _ in range(2))
    version = engine.model.version
    replaced(engine, model, other(model.state_dict()))
    first.append([4]).hidden()
    assert engine.model.version == version + 1
    assigned(engine, model, other(model.state_dict()))
    second.decode(max_new_tokens=2)
    assert engine.model.version == version + 2
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_what_shares_keys_and_values(tmp_path: Path) -> None:
    """A prompt shares with those since the last change, and with no other."""
    engine, model = engine_of("llama", tmp_path)
    kept, ran = [], []
    for _ in range(3):
        for _ in range(2):
            kept.append(engine.prefill(PROMPT))
            ran.append(kept[-1].cost.ran.prefilled)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    assert ran == [48, 16] * 3
    assert engine.prefill(PROMPT, salt="2:").cost.ran.prefilled == 48


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    engine, model = engine_of("qwen3", tmp_path)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    state = other(model.state_dict())
    assigned(engine, model, state)
    assert head.weight is not embedding.weight
    assert head.weight.data_ptr() == embedding.weight.data_ptr()
    logits(engine)  # moves them
    assert head.weight.data_ptr() == embedding.weight.data_ptr()
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="tied"):
        engine.load_weights(state)


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda s: [*s], TypeError, "state_dict: got list"),
        (lambda s: {**s, "more": torch.ones(1)}, ValueError, "'more'"),
        (lambda s: dict([*s.items()][:-1]), ValueError, "missing"),
        (lambda s: {n: t[:1] if "norm" in n else t for n, t in s.items()}, ValueError, r"\[1\]"),
        (lambda s: {n: t.half() if "norm" in n else t for n, t in s.items()}, ValueError, "float16"),
        (lambda s: {n: t.numpy() if "norm" in n else t for n, t in s.items()}, TypeError, "ndarray"),
        (lambda s: {n: t.to("meta") if "norm" in n else t for n, t in s.items()}, ValueError, "meta"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_change_nothing(
    spoil: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    engine, model = engine_of("llama", tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=said):
        engine.load_weights(spoil(other(before)))
    after = model.state_dict()
    assert all(same(before[name], after[name]) for name in before) and not engine.model.version


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.resize_token_embeddings(330),
        lambda model: model.model.layers.append(torch.nn.Linear(2, 2)),
    ],
)
def test_a_model_of_another_kind_is_refused(change: Any, tmp_path: Path) -> None:
    engine, model = engine_of("llama", tmp_path)
    paths = engine.prefill(PROMPT).fork(2)
    change(model)
    for call in (lambda: engine.prefill(PROMPT), lambda: paths.decode(max_new_tokens=1)):
        with pytest.raises(ValueError, match="^model: .* as when the engine was made"):
            call()


def test_a_move_that_fails_half_way_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, model = engine_of("qwen2", tmp_path)
    replaced(engine, model, other(model.state_dict()))
    right, take = theirs(model), llama.Room.take
    calls = iter(range(6))

    def failing(*given: Any) -> torch.Tensor:
        if next(calls, None) is None:
            raise MemoryError("test")
        return take(*given)

    with monkeypatch.context() as patch:
        patch.setattr(llama.Room, "take", failing)
        with pytest.raises(MemoryError, match="test"):
            engine.prefill(PROMPT)
    torch.testing.assert_close(logits(engine), right, rtol=0, atol=2e-4 * float(right.std()))
    check_engine(engine)


def test_a_model_in_memory_is_used_as_it_is(tmp_path: Path) -> None:
    model = tiny_models.plain_model(tiny_models.make("llama", tmp_path))
    parameters = list(model.parameters())
    first, second = (Engine.from_model(model, memory="1MiB", page_size=p) for p in (16, 8))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in parameters)
    assert first.model.model is model and first.tokenizer is None
    assert same(logits(first), logits(second))
    places = [parameter.data_ptr() for parameter in parameters]
    replaced(first, model, other(model.state_dict()))
    assert same(logits(first), logits(second))
    moved = [parameter.data_ptr() for parameter in parameters]
    logits(first)
    assert moved == [parameter.data_ptr() for parameter in parameters] != places
    with pytest.raises(ValueError, match="no tokenizer"):
        first.prefill("text")


def test_what_cannot_be_served_from_memory(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model: got Linear, expected"):
        Engine.from_model(torch.nn.Linear(2, 2))
    model = tiny_models.plain_model(tiny_models.make("llama", tmp_path))
    with pytest.raises(TypeError, match="Engine.from_model"):
        Engine(model)
    with pytest.raises(Unsupported, match="gives no logits"):
        Engine.from_model(model.model)
    with pytest.raises(Unsupported, match="meta"):
        Engine.from_model(copy.deepcopy(model).to("meta"))
    config = transformers.GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4)
    refused = transformers.AutoModelForCausalLM.from_config(config).train()
    was = refused.config._attn_implementation
    with pytest.raises(Unsupported, match="batch_invariant=False"):
        Engine.from_model(refused)
    assert refused.config._attn_implementation == was and refused.training


class Adapted(torch.nn.Module):
    """A linear layer and what is added to it, as adapters do."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base, self.added = base, torch.nn.Linear(base.in_features, base.out_features)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.added(x)
        return out


def test_adapters_go_through_the_modules(tmp_path: Path) -> None:
    model = tiny_models.plain_model(tiny_models.make("llama", tmp_path))
    attention = model.model.layers[0].self_attn
    attention.q_proj = Adapted(attention.q_proj)
    assert not llama.serves(model)
    engine = Engine.from_model(model, memory="4MiB")
    before = logits(engine)
    with torch.no_grad():
        attention.q_proj.added.weight.add_(1)
    assert not same(logits(engine), before)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_the_model_of_an_engine_can_be_trained(kind: str, tmp_path: Path) -> None:
    engine, model = engine_of(kind, tmp_path)
    plain = tiny_models.plain_model(str(tmp_path))
    rollout = logits(engine)
    model.set_attn_implementation("pyttc")
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    for each in (model, plain):
        each.train()
        each(ids, labels=ids).loss.backward()
    for (name, mine), right in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, right.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert same(logits(engine, salt=None), rollout)  # in training mode, with other attention


def test_weights_exchanged_by_functional_call_are_used(tmp_path: Path) -> None:
    _, model = engine_of("gemma2", tmp_path)
    model.set_attn_implementation("pyttc")
    state = other(model.state_dict())
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        found = torch.func.functional_call(model, state, (ids,)).logits[0, -1]
    plain = tiny_models.plain_model(str(tmp_path))
    plain.load_state_dict(state)
    torch.testing.assert_close(found, theirs(plain), rtol=0, atol=1e-4 * float(found.std()))


def test_rows_at_positions_of_their_own(tmp_path: Path) -> None:
    """As generate gives them for prompts that are padded on the left."""
    _, model = engine_of("qwen2", tmp_path)
    assert isinstance(model.lm_head, RowsLinear)
    model.set_attn_implementation("pyttc")
    ids = torch.tensor([PROMPT, [1] * 20 + PROMPT[20:]])
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    plain = tiny_models.plain_model(str(tmp_path))
    with torch.inference_mode():
        found, right = (each(ids, **given).logits[:, -1] for each in (model, plain))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-4 * float(right.std()))
