"""A tiny Countdown model that is taught a few problems in seconds, saved as a checkpoint."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F

from pyttc.engine import LinearHead
from pyttc.tasks.checkpoint import save_model
from pyttc.tasks.countdown import Problem, moves
from pyttc.tasks.countdown_text import EOS, VOCABULARY, calculator, prompt
from pyttc.tasks.llama import Llama, Shape

IDS = {symbol: i for i, symbol in enumerate(VOCABULARY)}
PROBLEMS = [Problem((8, 4, 2), 16), Problem((9, 6, 3), 18)]


def teach(folder: Path, problems: list[Problem] = PROBLEMS, steps: int = 80) -> Path:
    """Trains on all legal texts of the problems, each move as likely as the others, so that what is
    solved is a matter of luck and search. What the calculator writes is not learnt."""
    torch.manual_seed(0)
    draw, lines = random.Random(0), []
    for problem in problems:
        lines += [_line(problem, draw) for _ in range(24)]
    tokens = torch.zeros(len(lines), max(len(line) for line, _ in lines), dtype=torch.long)
    learnt = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (line, own) in enumerate(lines):
        tokens[row, : len(line)] = torch.tensor([IDS[symbol] for symbol in line])
        learnt[row, : len(line)] = torch.tensor(own)
    model = Llama(Shape(len(VOCABULARY), 32, 64, 2, 2, 1, head_dim=16))
    model.initialize(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        logits = model.logits(model(tokens[:, :-1]))
        loss = F.cross_entropy(logits[learnt[:, 1:]], tokens[:, 1:][learnt[:, 1:]])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    save_model(model, folder, torch.float32)
    LinearHead(torch.randn(32)).save(str(folder / "reward_exact.safetensors"))
    return folder


def _line(problem: Problem, draw: random.Random) -> tuple[str, list[bool]]:
    """A legal text with its prompt, and which of its characters the model is to learn."""
    line, numbers = prompt(problem), problem.numbers
    own = [False] * len(line)
    while len(numbers) > 1:
        step, numbers = draw.choice(moves(numbers))
        head, reply = f"{step.left}{step.op}{step.right}=", calculator(step.result, numbers)
        line, own = line + head + reply, own + [True] * len(head) + [False] * len(reply)
    return line + EOS, [*own, True]
