"""Sandbox: whatever a text does to the process that reads it, it fails alone."""

import gc
import math
import os
import signal
import socket
import threading
import time
import warnings

import numpy as np
import pytest

from pyttc import search
from pyttc.search.events import verdicts
from pyttc.search.sandbox import Sandbox
from pyttc.tasks import countdown_search as countdown
from pyttc.tasks.countdown_text import verify

FINE = "answer = 1"
HOSTILE = {
    "an endless loop": "while True: pass",
    "a long sleep": "time.sleep(60)",
    "a memory bomb": "x = bytearray(1 << 40)",
    "a slow memory bomb": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "a fork": "os.fork()\nanswer = True",
    "a fork bomb": "while True: os.fork()",
    "threads": "import threading\n[threading.Thread(target=time.sleep, args=(9,)).start() for _ in range(9)]",
    "an exit": "os._exit(0)",
    "a polite exit": "sys.exit(0)",
    "an exception": "1 / 0",
    "a signal": "os.kill(os.getpid(), 9)",
    "a crash": "import ctypes; ctypes.string_at(0)",
    "deep recursion": "f = lambda: f()\nf()",
    "no number": "answer = 'yes'",
    "a giant answer": "answer = 10 ** 4000000",
    "a giant text": "answer = 'x' * 100_000_000",
    "a closed pipe": "[os.close(n) for n in range(3, 64)]",
    "garbage on every pipe": "[os.write(n, b'garbage\\n' * 99) for n in range(3, 64)]",
    "a file": "answer = os.write(os.open('FILE', os.O_CREAT | os.O_WRONLY), b'x')",
    "a secret": "answer = len(os.environ['HOME'])",
    "a connection": "socket.create_connection(('127.0.0.1', PORT), 1)\nanswer = True",
    "a name looked up": "socket.getaddrinfo('example.org', 80)\nanswer = True",
}


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox("tests.sandboxed:run", seconds=2, memory=1 << 27)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert sandbox("", FINE) == 1
    sandbox.has_namespaces = not said
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def port():
    """Somebody listens on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept(), daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_fails_alone(sandbox, port, tmp_path, name):
    if name == "a connection" and not sandbox.has_namespaces:
        pytest.skip("no namespaces here, so the network is not cut off")
    hostile = HOSTILE[name].replace("PORT", str(port)).replace("FILE", str(tmp_path / "x"))
    begun = time.monotonic()
    assert sandbox.many([("", FINE), ("", hostile), ("", FINE), ("", FINE)]) == [1, None, 1, 1]
    assert time.monotonic() - begun < 30
    assert not any(path.stat().st_size for path in tmp_path.iterdir())


def test_texts_do_not_meet(sandbox):
    """Each has a process of its own, which sees none of the others."""
    assert sandbox.many([("", "kept.append(1)\nanswer = len(kept)")] * 3) == [1, 1, 1]
    assert sandbox("", "answer = 'HOME' in os.environ") is False
    assert sandbox("", "answer = os.getuid()") != 0
    if sandbox.has_namespaces:
        assert sandbox("", "answer = os.getppid()") == 1
        alone = "try: os.kill(OTHER, 0)\nexcept OSError: answer = True"
        assert sandbox("", alone.replace("OTHER", str(os.getpid()))) is True


def test_texts_that_share_a_fork_survive_the_one_that_ends_it():
    sandbox = Sandbox("tests.sandboxed:run", seconds=2, memory=1 << 27, texts=8)
    texts = [FINE, "os._exit(0)", FINE, "while True: pass", FINE, "1 / 0", FINE, FINE, FINE]
    found = sandbox.many([("", text) for text in texts])
    assert found == [1, None, 1, None, 1, None, 1, 1, 1]


def test_a_child_that_was_killed_is_replaced(sandbox):
    for _ in range(2):
        sandbox._child._process.send_signal(signal.SIGKILL)
        sandbox._child._process.wait()
        assert sandbox.many([("", FINE)] * 2) == [1, 1]


def test_no_process_is_left_behind():
    sandbox = Sandbox("tests.sandboxed:run")
    sandbox("", FINE)
    process = sandbox._child._process
    del sandbox
    gc.collect()
    assert process.poll() is not None


@pytest.mark.parametrize(
    "function, said",
    [
        ("tests.sandboxed:nowhere", "nowhere"),
        ("no.such.module:f", "no"),
        ("tests.sandboxed", "expected module:function"),
        ("__main__:f", "expected module:function"),
        (lambda prompt, text: True, "expected module:function"),
    ],
)
def test_a_function_that_cannot_be_imported_is_named(function, said):
    with pytest.raises(ValueError, match=said):
        Sandbox(function)("", "")


@pytest.mark.parametrize("wrong", [5, None, ["a:b"], True])
def test_a_function_that_is_none_is_named(wrong):
    with pytest.raises(ValueError, match="^function: got .*, expected module:function"):
        Sandbox(wrong)


def test_a_verifier_in_a_sandbox_says_yes_with_true_or_one_only(sandbox):
    texts = [
        f"answer = {x}"
        for x in ("True", "1", "1.0", "0", "0.5", "-1", "7", "float('nan')", "'yes'")
    ]
    assert verdicts(sandbox, [("", text) for text in texts]) == [True] * 3 + [False] * 6


def test_limits_are_checked():
    for wrong in ({"seconds": "1"}, {"memory": 1.5}, {"texts": True}, {"seconds": math.nan}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: got"):
            Sandbox(verify, **wrong)
    for name in ("seconds", "memory", "texts"):
        with pytest.raises(ValueError, match=f"{name}: got 0"):
            Sandbox(verify, **{name: 0})
    with pytest.raises(ValueError, match="cannot be imported here"):
        Sandbox(verify, memory=1 << 20)("", "")


def test_the_countdown_verifier_is_one():
    check = countdown.options()["verify"]
    assert isinstance(check, Sandbox) and check is countdown.options()["verify"]
    line, good = "8,4,2>16:", "8*4=32|32,2;32/2=16|16;"
    assert check.many([(line, good), (line, "8*4=32|32,2;"), (line, "")]) == [True, False, False]
    assert countdown.options(attempts=True)["verify"](line, "8+4=12|12,2;" + line + good) is True


def test_scores(sandbox):
    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return "prompt"

    class Texts:
        engine = type("Engine", (), {"tokenizer": Tokenizer()})
        prompts, prompt = [[1]], np.zeros(3, np.int64)

        def text(self):
            return ["answer = len(prompt)", "1 / 0", "answer = 0.5"]

    assert sandbox.score(Texts()) == [6.0, -np.inf, 0.5]
    assert isinstance(search.Sandbox("tests.sandboxed:length")("", "abc"), int)
    assert search.Sandbox("tests.sandboxed:nothing")("", "abc") is None
