"""Every public function has a property test, with as many examples as PYTTC_EXAMPLES says: the table names
it. Those of the ops stand with the op; those of the engine and of search are here."""

from __future__ import annotations

import importlib
import inspect
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyttc
from pyttc import search
from pyttc.dispatch import IMPLS
from pyttc.engine import Engine, LinearHead, OutOfPages, Paths
from tests import tiny_models
from tests.common import EXAMPLES, written
from tests.ops import NAMES, Call, function, sample_inputs
from tests.pages import check_engine

properties = settings(max_examples=EXAMPLES, derandomize=True)
HERE, OP_BITS = "test_properties", "test_bits_do_not_depend_on_the_batch"
TABLE = {
    "pyttc.Budget": (HERE, "test_budgets_are_finite_and_obeyed"),
    "pyttc.Cost": (HERE, "test_paths_are_what_each_is_alone"),
    "pyttc.Engine": (HERE, "test_paths_are_what_each_is_alone"),
    "pyttc.Engine.collect": (HERE, "test_any_sequence_of_calls_keeps_the_pages"),
    "pyttc.Engine.check_paths": (HERE, "test_any_sequence_of_calls_keeps_the_pages"),
    "pyttc.Engine.encode": (HERE, "test_text_is_encoded_as_the_tokenizer_does"),
    "pyttc.Engine.encode_all": (HERE, "test_text_is_encoded_as_the_tokenizer_does"),
    "pyttc.Engine.from_pretrained": ("test_engine", "test_a_checkpoint_changes_its_dtype_when_asked"),
    "pyttc.Engine.from_model": ("test_weights", "test_changed_weights_are_taken_up"),
    "pyttc.Engine.is_single": (HERE, "test_text_is_encoded_as_the_tokenizer_does"),
    "pyttc.Engine.load_weights": ("test_weights", "test_changed_weights_are_taken_up"),
    "pyttc.Engine.prefill": (HERE, "test_paths_are_what_each_is_alone"),
    "pyttc.Engine.required_pages": (HERE, "test_required_pages_suffice"),
    "pyttc.Engine.run": (HERE, "test_paths_are_what_each_is_alone"),
    "pyttc.Engine.weights_changed": ("test_weights", "test_changed_weights_are_taken_up"),
    "pyttc.LinearHead": (HERE, "test_heads_are_linear_and_survive_a_file"),
    "pyttc.LinearHead.from_file": (HERE, "test_heads_are_linear_and_survive_a_file"),
    "pyttc.LinearHead.save": (HERE, "test_heads_are_linear_and_survive_a_file"),
    "pyttc.OutOfPages": (HERE, "test_any_sequence_of_calls_keeps_the_pages"),
    "pyttc.Paths": (HERE, "test_paths_are_what_each_is_alone"),
    **{
        f"pyttc.Paths.{verb}": (HERE, "test_any_sequence_of_calls_keeps_the_pages")
        for verb in ("append", "begin_writing", "cat", "decode", "fork", "forward", "free", "hidden")
        + ("logits", "sample_identity", "score", "select", "spend_flops", "text")
    },
    "pyttc.PrefixTree": (HERE, "test_trees_are_refused_or_hold_what_was_given"),
    **{
        f"pyttc.PrefixTree.{name}": (HERE, "test_trees_are_refused_or_hold_what_was_given")
        for name in ("follow", "from_tensors", "host", "plan", "to")
    },
    "pyttc.Sample": ("test_sample", OP_BITS),
    "pyttc.TopKScore": ("test_topk_score", OP_BITS),
    "pyttc.Unsupported": ("test_engine", "test_models_that_cannot_be_served_are_refused"),
    "pyttc.copy_pages": ("test_copy_pages", "test_any_layout"),
    "pyttc.curve": (HERE, "test_a_curve_counts_what_was_solved"),
    "pyttc.explain": (HERE, "test_explain_names_what_runs"),
    "pyttc.lm_head_topk": ("test_lm_head_topk", OP_BITS),
    "pyttc.merge_states": ("test_merge_states", "test_strides_do_not_show"),
    "pyttc.prefix_tree_attention": ("test_prefix_tree_attention", "test_bits_do_not_depend_on_batch"),
    "pyttc.register": ("test_engine", "test_prompt_given_to_generate_on_pyttc_kernels"),
    "pyttc.sample": ("test_sample", OP_BITS),
    "pyttc.select_beams": ("test_select_beams", "test_strides_do_not_show"),
    "pyttc.shared_prefix_attention": ("test_shared_prefix_attention", "test_bits_are_those_of_the_tree"),
    "pyttc.solve": (HERE, "test_budgets_are_finite_and_obeyed"),
    "pyttc.store_kv": ("test_store_kv", "test_any_layout"),
    "pyttc.stream": (HERE, "test_budgets_are_finite_and_obeyed"),
    "pyttc.topk_score": ("test_topk_score", OP_BITS),
}  # fmt: skip


def public() -> set[str]:
    """Every function and class of pyttc.__all__, and the public methods of those of the engine."""
    names = set()
    for name in pyttc.__all__:
        thing = getattr(pyttc, name)
        names.add(f"pyttc.{name}")
        if name in ("Engine", "LinearHead", "Paths", "PrefixTree"):
            methods = inspect.getmembers(thing, inspect.isroutine)
            names |= {f"pyttc.{name}.{m}" for m, _ in methods if not m.startswith("_")}
    return names


def test_every_public_function_has_a_property_test() -> None:
    assert public() == set(TABLE)
    for module, test in TABLE.values():
        assert callable(getattr(importlib.import_module(f"tests.{module}"), test)), test


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tiny_models.make("llama", tmp_path_factory.mktemp("llama"), num_hidden_layers=1)
    return Engine.from_pretrained(folder, memory="1MiB")


tokens = st.lists(st.integers(2, 319), min_size=1, max_size=40)
salts = st.sampled_from(["", "a", None])
texts = st.text(alphabet="the steps;\n né", max_size=30)


@properties
@given(data=st.data())
def test_paths_are_what_each_is_alone(engine: Engine, data: st.DataObject) -> None:
    """Whatever prompts, salts, widths, lengths and parameters run together."""
    prompts = data.draw(st.lists(tokens, min_size=1, max_size=3))
    n, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 5))
    settings = {"temperature": data.draw(st.floats(0, 3)), "top_p": data.draw(st.floats(0, 1))}
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    root = engine.prefill(prompts, seed=seed, salt=data.draw(salts))
    paths = root.fork(n).decode(max_new_tokens=steps, **settings)
    pick = data.draw(st.integers(0, len(paths) - 1))
    alone = engine.prefill(prompts[pick // n], seed=seed, salt=None).fork(1, start=pick % n)
    alone.decode(max_new_tokens=steps, **settings)
    assert written(paths)[pick] == written(alone)[0]
    assert paths.ended[pick] == alone.ended[0]
    assert np.array_equal(paths.hidden()[pick], alone.hidden()[0])
    ran, unshared = paths.cost.ran, paths.cost.unshared
    assert ran.decoded == unshared.decoded == paths.new_lengths.sum()
    assert ran.prefilled <= unshared.prefilled and ran.flops <= unshared.flops
    check_engine(engine, root, paths, alone)


@properties
@given(data=st.data())
def test_any_sequence_of_calls_keeps_the_pages(engine: Engine, data: st.DataObject) -> None:
    alive = [engine.prefill(data.draw(tokens), salt=data.draw(salts))]
    verbs = ["fork", "decode", "append", "select", "score", "free", "cat"]
    for _ in range(data.draw(st.integers(1, 6))):
        paths = alive[data.draw(st.integers(0, len(alive) - 1))]
        verb = data.draw(st.sampled_from(verbs))
        rows = st.integers(0, max(len(paths) - 1, 0))
        before = paths.lengths.copy()
        try:
            if verb == "fork":
                forks = paths.fork(data.draw(st.integers(0, 4)))
                assert np.array_equal(forks.lengths, before[forks.parents])
                alive.append(forks)
            elif verb == "decode":
                paths.decode(max_new_tokens=data.draw(st.integers(0, 20)))
                assert (paths.lengths >= before).all()
            elif verb == "append":
                added = data.draw(st.lists(tokens, min_size=len(paths), max_size=len(paths)))
                paths.append(added or [3])
                assert np.array_equal(paths.lengths, before + [len(a) for a in added])
            elif verb == "select":
                kept = data.draw(st.lists(rows, max_size=5)) if len(paths) else []
                paths.select(kept)
                assert np.array_equal(paths.lengths, before[kept])
            elif verb == "score" and len(paths):
                scores = paths.score(LinearHead(torch.ones(64)))
                assert scores.shape == (len(paths),) and scores.isfinite().all()
            elif verb == "free":
                paths.free()
            elif verb == "cat":
                alive.append(Paths.cat([paths, alive[0], paths]))
                assert alive[-1].text() == [*paths.text(), *alive[0].text(), *paths.text()]
        except OutOfPages:
            assert (paths.lengths >= before).all() or verb != "decode"
        assert len(paths.text()) == len(paths)
        check_engine(engine, *alive)


@properties
@given(text=texts, ids=tokens)
def test_text_is_encoded_as_the_tokenizer_does(engine: Engine, text: str, ids: list[int]) -> None:
    expected = engine.tokenizer(text)["input_ids"]
    assert engine.encode(text).tolist() == expected
    for same in (ids, torch.tensor(ids), np.array(ids), tuple(ids)):
        assert Engine.is_single("prompts", same)
        assert [e.tolist() for e in engine.encode_all([same, text])] == [ids, expected]


@properties
@given(length=st.integers(1, 60), paths=st.integers(1, 5), new=st.integers(1, 40))
def test_required_pages_suffice(engine: Engine, length: int, paths: int, new: int) -> None:
    needed = engine.required_pages([length], paths, new)
    assert engine.required_pages([[5] * length], paths, new) == needed
    free = engine.free_pages
    root = engine.prefill([5] * length, salt=None)
    all_of_them = root.fork(paths) if paths > 1 else root
    all_of_them.append([[9] * new] * paths).hidden()
    assert free - engine.free_pages <= needed


numbers = st.integers(-3, 6) | st.sampled_from([2**31, -(2**31), 2**63 - 1])


@properties
@given(data=st.data())
def test_trees_are_refused_or_hold_what_was_given(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(0, 4))
    few = st.lists(numbers, min_size=nodes, max_size=nodes + data.draw(st.integers(0, 1)))
    parents, lengths, leaves = (
        data.draw(few),
        data.draw(few),
        data.draw(st.lists(numbers, max_size=4)),
    )
    pages = data.draw(
        st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=nodes, max_size=nodes)
    )
    page_size = data.draw(st.integers(0, 4))
    try:
        tree = pyttc.PrefixTree(parents, pages, lengths, leaves, page_size)
    except (ValueError, TypeError) as error:
        names = ("parents", "pages", "lengths", "leaves", "page_size")
        assert str(error).startswith(names)
        return
    assert 1 <= page_size and len(parents) == len(lengths) == nodes
    assert tree.parents.tolist() == parents and tree.leaves.tolist() == leaves
    assert tree.page_ids.tolist() == sum(pages, []) and tree.lengths.tolist() == lengths
    assert all(-1 <= p < nodes for p in parents) and all(-1 <= n < nodes for n in leaves)
    assert all(n <= page_size * len(p) for n, p in zip(lengths, pages, strict=True))
    for node in range(nodes):  # a forest
        for _ in range(nodes):
            node = parents[node] if node >= 0 else -1
        assert node == -1
    other = tree.to("cpu")
    other.follow(tree)
    pool, q = torch.zeros(10, page_size, 1, 16), torch.zeros(len(leaves), 2, 16)
    assert all(map(torch.equal, other.host(), tree.host()))
    assert len(other.plan(q, pool)) == 5


@properties
@given(
    weight=st.lists(st.floats(-3, 3, width=32), min_size=64, max_size=64),
    bias=st.floats(-3, 3, width=32),
    activation=st.sampled_from(["sigmoid", None]),
    prompt=tokens,
)
def test_heads_are_linear_and_survive_a_file(
    engine: Engine, weight: list[float], bias: float, activation: str | None, prompt: list[int]
) -> None:
    head, paths = LinearHead(torch.tensor(weight), bias, activation), engine.prefill(prompt)
    exact = paths.hidden().double() @ torch.tensor(weight).double() + bias
    exact = exact.sigmoid() if activation else exact
    assert torch.allclose(head(paths).double(), exact, atol=1e-3, rtol=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        head.save(f"{folder}/head.safetensors")
        again = LinearHead.from_file(f"{folder}/head.safetensors", activation)
    assert torch.equal(again(paths), head(paths))


@properties
@given(
    limit=st.integers(0, 40) | st.none(),
    n=st.integers(1, 4),
    prompts=st.lists(texts.filter(bool), min_size=1, max_size=2),
    wrong=st.sampled_from([-1, float("nan"), float("inf"), -0.5]),
)
def test_budgets_are_finite_and_obeyed(
    engine: Engine, limit: int | None, n: int, prompts: list[str], wrong: float
) -> None:
    for name in ("tokens", "seconds", "flops", "dollars"):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: got"):
            pyttc.Budget(**{name: wrong}, dollars_per_hour=1.0)
    call: dict[str, Any] = {"budget": pyttc.Budget(tokens=limit), "max_new_tokens": 6, "seed": 1}
    *_, last = pyttc.stream(engine, prompts, search.SampleN(n=n), **call)
    found = pyttc.solve(engine, prompts, search.SampleN(n=n), **call)
    assert [r.answer for r in found] == [r.answer for r in last]
    assert found[0].tokens <= (6 * n * len(prompts) if limit is None else limit)
    check_engine(engine)


@properties
@given(prompts=st.lists(texts.filter(bool), min_size=1, max_size=2), n=st.integers(1, 3))
def test_a_curve_counts_what_was_solved(engine: Engine, prompts: list[str], n: int) -> None:
    options: dict[str, Any] = {"sizes": [1, n + 1], "max_new_tokens": 3}
    points = [
        list(
            search.curve(
                engine, prompts, {"sample": search.SampleN}, verify=lambda p, t: "e" in t, **options
            )
        )
        for _ in range(2)
    ]
    assert [p.n for p in points[0]] == [1, n + 1]
    for a, b in zip(*points, strict=True):
        assert a.solved == b.solved and a.chosen == b.chosen and a.problems == len(prompts)
        assert 0 <= a.chosen[0] <= a.solved[0] + 1e-9 <= 1 + 2e-9
    assert points[0][0].solved[0] <= points[0][1].solved[0] + 1e-9


@pytest.fixture(scope="module")
def calls() -> dict[str, list[Call]]:
    return {name: [c for c in sample_inputs(name) if "impl" not in c[1]] for name in NAMES}


@properties
@given(data=st.data())
def test_explain_names_what_runs(calls: dict[str, list[Call]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    args, kwargs = data.draw(st.sampled_from(calls[name]))
    impl = data.draw(st.sampled_from([None, *IMPLS]))
    said = pyttc.explain(function(name), *args, **kwargs, impl=impl)
    assert said.op == name and said.chosen in (None, *IMPLS) and said.why
    assert said.chosen is None or impl in (None, said.chosen)
