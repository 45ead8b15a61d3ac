"""The examples run, on a random model of the shape of those that come with the package."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.examples import beam, strategy, vote
from pyttc import LinearHead, tasks
from pyttc.tasks.checkpoint import save_model
from pyttc.tasks.llama import Llama, Shape

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("countdown")
    llama = Llama(Shape(22, 64, 96, 2, 4, 2))
    llama.initialize(0)
    save_model(llama, folder)
    torch.manual_seed(0)
    LinearHead(torch.randn(64)).save(str(folder / "reward_exact.safetensors"))
    return str(folder)


def test_sampling_and_voting(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    vote.main(["--model", model, "--paths", "200"])
    said = capsys.readouterr().out
    assert "of 200 paths are left" in said and "unshared" in said


def test_beam_search_with_a_reward_head(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    beam.main(["--model", model])
    said = capsys.readouterr().out
    assert said.count("solved") == 8 and "tokens" in said and "unshared" in said


def test_a_strategy_from_scratch(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    strategy.main(["--model", model])
    assert capsys.readouterr().out.count("solved") == 4
    assert len(inspect.getsource(strategy.Halving).splitlines()) <= 22  # with the two around it


def test_an_example_is_a_command_and_uses_the_models_that_are_there(model: str) -> None:
    command = [sys.executable, "-m", "benchmarks.examples.vote"]
    command += [] if tasks.model_names() else ["--model", model]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and "paths are left" in ran.stdout, ran.stderr
