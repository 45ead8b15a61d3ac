"""decode: stops, lengths and parameters of each path, what is kept of every token, interrupts."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyttc.engine as engine_package
from pyttc.engine import Engine, LinearHead, multi_step
from tests import engines, tiny_models
from tests.common import written

engine, no_eos, nothing_leaks = engines.poisoned, engines.no_eos, engines.nothing_leaks


def test_stop_strings_end_a_path_with_the_token_that_completes_them(no_eos: Engine) -> None:
    stops = ["; ", "e", "st", "\n\n"]
    paths = no_eos.prefill("the steps").fork(48, seed=1)
    paths.decode(until=stops, max_new_tokens=40)
    free = no_eos.prefill("the steps").fork(48, seed=1).decode(max_new_tokens=40)
    tokenizer = no_eos.tokenizer
    seen = set()
    for row, whole, end in zip(written(paths), written(free), paths.ended, strict=True):
        # the plain way: the shortest run of tokens whose text holds a stop
        cut = next(
            (n for n in range(1, 41) if any(s in tokenizer.decode(whole[:n]) for s in stops)), 41
        )
        assert row == whole[:cut]
        assert end == ("until" if cut < 41 else "length")
        seen.add(end)
    assert seen == {"until", "length"} or cut < 41


def test_stop_strings_span_tokens(no_eos: Engine) -> None:
    ids = [no_eos.tokenizer.convert_tokens_to_ids(t) for t in ("x", "q", "z")]
    words = torch.zeros(10, dtype=torch.int32)
    for token in ids:
        words[token // 32] |= 1 << token % 32
    paths = no_eos.prefill("the").fork(32, seed=3)
    paths.decode(until="xqz", max_new_tokens=60, mask=words)
    for text, end in zip(paths.text(), paths.ended, strict=True):
        assert text.endswith("xqz") == ("xqz" in text) == (end == "until")
        assert set(text) <= set("xqz")
    assert "until" in paths.ended and no_eos.tokenizer.convert_tokens_to_ids("xq") is None


def test_a_text_of_eos_ends_a_path_for_good_whatever_calls_and_forks_it_spans(
    no_eos: Engine,
) -> None:
    ids = [no_eos.tokenizer.convert_tokens_to_ids(t) for t in ("x", "q", "z")]
    words = torch.zeros(10, dtype=torch.int32)
    for token in ids:
        words[token // 32] |= 1 << token % 32
    how: dict[str, Any] = {"eos": "xqz", "mask": words}
    root = no_eos.prefill("the")
    whole = root.fork(32, seed=3).decode(max_new_tokens=60, **how)
    parts = root.fork(32, seed=3)
    for _ in range(30):
        parts.decode(max_new_tokens=2, until="q", **how)
    for text, other, end in zip(whole.text(), parts.text(), whole.ended, strict=True):
        assert text.endswith("xqz") == ("xqz" in text) == (end == "eos")
        assert other == text[: len(other)]
    assert set(parts.ended) == {"eos", "until", "length"}
    assert parts.done.tolist() == [end == "eos" for end in parts.ended]
    forked = root.append("xq").fork(32).decode(max_new_tokens=1, **how)
    assert [end == "eos" for end in forked.ended] == [t == "xqz" for t in forked.text()]
    assert "eos" in forked.ended
    forced = root.append("z;").fork(32).decode(max_new_tokens=1, **how)  # behind "xqz;"
    assert "eos" not in forced.ended
    with pytest.raises(TypeError, match="^eos: got"):
        root.decode(eos=[1.5])


def test_stop_tokens_and_lengths_are_each_paths_own(no_eos: Engine) -> None:
    limits = np.arange(16)
    paths = no_eos.prefill("the").fork(16, seed=0).decode(max_new_tokens=limits)
    assert [len(row) for row in written(paths)] == limits.tolist()
    assert set(paths.ended) == {"length"} and not paths.done.any()
    whole = no_eos.prefill("the").fork(16, seed=0).decode(max_new_tokens=16)
    assert all(a == b[: len(a)] for a, b in zip(written(paths), written(whole), strict=True))
    # going on is the same as never having stopped
    assert written(paths.decode(max_new_tokens=16 - limits)) == written(whole)
    stop = written(whole)[0][3]
    paths = no_eos.prefill("the").fork(16, seed=0).decode(until=[stop], max_new_tokens=16)
    for row, full in zip(written(paths), written(whole), strict=True):
        assert row == (full[: full.index(stop) + 1] if stop in full else full)


def test_a_path_at_its_stop_leaves_the_batch_at_once(
    no_eos: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = no_eos.run

    def counted(leaves: Any, *others: Any) -> Any:
        rows.append(leaves.size)
        return run(leaves, *others)

    monkeypatch.setattr(multi_step, "STEPS", 1)
    monkeypatch.setattr(no_eos, "run", counted)
    limits = np.array([1, 2, 2, 4, 7, 7, 7, 7])
    no_eos.prefill("the").fork(8, seed=0).decode(max_new_tokens=limits)
    # the prompt, whose pass gives the first token; then those that want another
    assert rows == [1] + [int((limits > step).sum()) for step in range(1, 7)]


def test_parameters_for_each_path(no_eos: Engine) -> None:
    settings: dict[str, Any] = {
        "temperature": [0.0, 1.0, 3.0, 2.0, 2.0, 2.0],
        "top_k": [0, 0, 2, 0, 0, 0],
        "top_p": [1.0, 1.0, 1.0, 0.3, 1.0, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.5, 0.0],
    }
    mask = torch.full((6, 10), -1, dtype=torch.int32)
    mask[5, :7] = 0  # tokens from 224 on
    mixed = no_eos.prefill("the").fork(6).decode(max_new_tokens=9, mask=mask, **settings)
    plain = no_eos.prefill("the").fork(6).decode(max_new_tokens=9)
    for i in range(6):
        own = {name: values[i] for name, values in settings.items()}
        alone = no_eos.prefill("the").fork(1, start=i)
        alone.decode(max_new_tokens=9, mask=mask[i], **own)
        assert written(alone)[0] == written(mixed)[i]
        assert (written(plain)[i] == written(mixed)[i]) == (i == 1)
    assert min(written(mixed)[5]) >= 224


def test_statistics_of_every_token(no_eos: Engine) -> None:
    paths = no_eos.prefill("the").fork(5, seed=0)
    paths.decode(max_new_tokens=6, confidence=4).append("and").decode(max_new_tokens=2)
    model = tiny_models.plain_model(no_eos.model.config.name_or_path)
    forced = len(no_eos.encode("and", special=False))
    for i, row in enumerate(written(paths)):
        ids = torch.tensor([[*paths.prompts[0].tolist(), *row]])
        with torch.inference_mode():
            logp = model(ids).logits[0].double().log_softmax(-1)[-len(row) - 1 : -1]
        expected = logp.gather(1, torch.tensor(row)[:, None])[:, 0]
        drawn = torch.tensor([True] * 6 + [False] * forced + [True] * 2)
        assert torch.equal(paths.logprobs[i].isnan(), ~drawn)
        torch.testing.assert_close(
            paths.logprobs[i][drawn].double(), expected[drawn], atol=1e-4, rtol=0
        )
        entropy = -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(
            paths.entropy[i][drawn].double(), entropy[drawn], atol=1e-4, rtol=0
        )
        top = -logp.topk(4).values.mean(-1)
        torch.testing.assert_close(paths.confidence[i][:6].double(), top[:6], atol=1e-4, rtol=0)
        assert paths.confidence[i][6:].isnan().all()


def test_processed_logprobs_are_those_of_what_was_drawn_from(no_eos: Engine) -> None:
    settings: dict[str, Any] = {"temperature": 1.5, "top_k": [0, 1, 3, 40], "min_p": 0.02}
    paths = no_eos.prefill("the").fork(4, seed=0).decode(max_new_tokens=6, **settings)
    model = tiny_models.plain_model(no_eos.model.config.name_or_path)
    for i, row in enumerate(written(paths)):
        ids = torch.tensor([[*paths.prompts[0].tolist(), *row]])
        with torch.inference_mode():
            p = (model(ids).logits[0, -len(row) - 1 : -1].double() / 1.5).softmax(-1)
        best = p.topk(settings["top_k"][i] or 320)
        kept = best.values * (best.values >= 0.02 * best.values[:, :1])
        drawn = p.gather(1, torch.tensor(row)[:, None])[:, 0]
        torch.testing.assert_close(
            paths.processed_logprobs[i].double(), (drawn / kept.sum(-1)).log(), atol=1e-4, rtol=0
        )
    before = paths.processed_logprobs
    assert not torch.equal(before, paths.logprobs) and not before[1].any()
    forks = paths.select([2, 0]).append("and").fork(2).decode(max_new_tokens=2)
    after = forks.processed_logprobs
    assert torch.equal(after[:, :6], before[[2, 2, 0, 0]])
    assert torch.equal(after.isnan(), forks.logprobs.isnan()) and after[:, 6].isnan().all()


def test_stop_if_sees_every_step(no_eos: Engine) -> None:
    steps = []

    def stop(paths: Any, running: Any) -> Any:
        steps.append(running.tolist())
        return running == len(steps) - 1 if len(steps) < 3 else None

    paths = no_eos.prefill("the").fork(4).decode(max_new_tokens=5, stop_if=stop)
    assert paths.ended == ["stopped", "stopped", "length", "length"]
    assert [len(row) for row in written(paths)] == [1, 2, 5, 5]
    assert steps == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [2, 3]]


def test_interrupt_leaves_what_was_decoded(no_eos: Engine) -> None:
    paths = no_eos.prefill("the").fork(4, seed=0)

    def press(paths: Any, running: Any) -> None:
        if len(written(paths)[0]) == 3:
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        paths.decode(max_new_tokens=4000, stop_if=press)
    count = len(written(paths)[0])
    assert 3 <= count < 4000
    paths.decode(max_new_tokens=2)
    whole = no_eos.prefill("the").fork(4, seed=0).decode(max_new_tokens=count + 2)
    assert written(paths) == written(whole)


def test_a_process_that_ignores_interrupts_goes_on_to(no_eos: Engine) -> None:
    """As one that nohup or a shell's & started."""
    paths = no_eos.prefill("the").fork(2, seed=0)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        paths.decode(max_new_tokens=3, stop_if=lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert paths.ended == ["length"] * 2


def test_interrupts_of_a_prompt_and_a_score_are_clean(
    no_eos: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    one_pass = no_eos._pass

    def press(*args: Any) -> Any:
        passes.append(1)
        if len(passes) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return one_pass(*args)

    held = no_eos.kv_bytes
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(no_eos, "_pass", press)
        no_eos.prefill([3] * 3000)
    assert len(passes) == 2 and no_eos.kv_bytes == held
    paths = no_eos.prefill("the").fork(4, seed=0).decode(max_new_tokens=3)
    passes.pop()  # the next is the second
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(no_eos, "_pass", press)
        paths.score(LinearHead(torch.ones(64)))
    same = no_eos.prefill("the").fork(4, seed=0).decode(max_new_tokens=3)
    assert torch.equal(paths.hidden(), same.hidden())
    assert written(paths.decode(max_new_tokens=3)) == written(same.decode(max_new_tokens=3))


def test_no_loop_over_paths_a_token(no_eos: Engine) -> None:
    """The bytecode that a step of the engine runs is as long for 256 paths as for 16."""
    ours, count = str(Path(engine_package.__file__).parent), [0]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ours):
            return None
        frame.f_trace_opcodes = True
        count[0] += event == "opcode"
        return trace

    tilde = no_eos.tokenizer.convert_tokens_to_ids("~")
    mask = torch.full((10,), -1, dtype=torch.int32)
    mask[tilde // 32] &= ~(1 << tilde % 32)
    counts = []
    for n in (16, 256):
        # all within one page; nobody may write the last letter of the stop
        paths = no_eos.prefill("the").fork(n, seed=0).decode(max_new_tokens=2)
        steps: list[int] = []

        def note(paths: Any, running: Any, steps: list[int] = steps) -> None:
            steps.append(count[0])

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            paths.decode("xy~", 5, mask=mask, confidence=2, stop_if=note)
        finally:
            sys.settrace(before)
        counts.append(min(np.diff(steps)))
    assert counts[0] > 500 and counts[1] < 1.2 * counts[0], counts


def test_a_long_run_shows_a_bar(
    no_eos: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws as on a terminal
    no_eos.prefill("the").fork(4).decode(max_new_tokens=5, progress=True)
    assert "decoding" in capsys.readouterr().err
    paths = no_eos.prefill("the").fork(64).decode(max_new_tokens=40)
    assert capsys.readouterr().err == ""  # nobody looks
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    paths.decode(max_new_tokens=2)
    assert capsys.readouterr().err == ""  # not worth a bar
    paths.decode(max_new_tokens=40)
    assert "decoding" in capsys.readouterr().err


def test_draws_belong_to_seed_prompt_and_path(no_eos: Engine) -> None:
    def draws(prompts: Any, seed: int) -> list[tuple[int, int]]:
        forks = no_eos.prefill(prompts).fork(3, seed=seed)
        again = forks.fork(2)
        parts = [p.sample_identity(np.arange(len(p))) for p in (forks, again)]
        return [
            pair for keys, ids in parts for pair in zip(keys.tolist(), ids.tolist(), strict=True)
        ]

    a, b = draws("the steps", 0), draws("the step", 0)
    assert draws(["the step", "the steps"], 0) == b[:3] + a[:3] + b[3:] + a[3:]
    everyone = a + b + draws("the steps", 1)
    assert len(set(everyone)) == len(everyone) == 27
