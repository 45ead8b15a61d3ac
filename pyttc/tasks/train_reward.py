"""Fits the process-reward heads of a Countdown model: python -m pyttc.tasks.train_reward DIR

A head is a linear map of the model's last hidden state (after the final norm) at a step's
delimiter; its sigmoid estimates whether the target can still be reached. Two are fitted, on states
the model itself gets into: reward_exact.safetensors with the exact solver's labels, and
reward_monte_carlo.safetensors with the share of eight rollouts of the model from there that solve
the problem. Prints the area under the ROC curve against exact labels on test problems, by how many
numbers are left.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .checkpoint import load_model
from .countdown import Problem, can_reach, generate, test_set
from .countdown_text import DELIMITER, VOCABULARY, follow, prompt, split_steps, verify
from .llama import Llama
from .sampler import sample

IDS = {symbol: i for i, symbol in enumerate(VOCABULARY)}
ROLLOUTS = 8


@dataclass
class States:
    """Steps that a model wrote: which problem, the text up to the delimiter, the hidden state there
    [n, H], how many numbers are then left (0 after an illegal step), and the exact label."""

    problems: list[Problem]
    begun: list[str]
    hidden: torch.Tensor
    left: list[int]
    exact: torch.Tensor


@torch.inference_mode()
def states_of(model: Llama, rows: Sequence[Problem], texts: Sequence[str]) -> States:
    """All steps of the texts, each text up to its first illegal step."""
    found = States([], [], torch.empty(0), [], torch.empty(0))
    hidden, labels = [], []
    for at in range(0, len(rows), 256):
        part = list(zip(rows[at : at + 256], texts[at : at + 256], strict=True))
        lines = [prompt(problem) + text for problem, text in part]
        tokens = torch.zeros(len(lines), max(map(len, lines)), dtype=torch.long)
        for i, line in enumerate(lines):
            tokens[i, : len(line)] = torch.tensor([IDS[symbol] for symbol in line])
        outputs = model(tokens)
        for i, (problem, text) in enumerate(part):
            begun = ""
            for step in split_steps(text):
                begun += step
                if not step.endswith(DELIMITER):
                    break
                numbers, legal = follow(problem, split_steps(begun))
                fine = legal == begun.count(DELIMITER)
                found.problems.append(problem)
                found.begun.append(begun)
                found.left.append(len(numbers) if fine else 0)
                hidden.append(outputs[i, len(prompt(problem)) + len(begun) - 1])
                labels.append(float(fine and can_reach(numbers, problem.target)))
                if not fine:
                    break
    found.hidden, found.exact = torch.stack(hidden).float(), torch.tensor(labels)
    return found


def explore(model: Llama, problems: Sequence[Problem], tries: int, seed: int) -> States:
    """States of `tries` texts for each problem, a quarter of them written without the
    calculator."""
    rows = [problem for problem in problems for _ in range(tries)]
    cut = len(rows) * 3 // 4
    texts = sample(model, rows[:cut], seed=seed)
    texts += sample(model, rows[cut:], seed=seed + 1, direct=True)
    return states_of(model, rows, texts)


def monte_carlo(model: Llama, states: States, chosen: Sequence[int], seed: int) -> torch.Tensor:
    """The share of ROLLOUTS continuations of each chosen state that solve its problem; with the
    calculator."""
    left = torch.tensor(states.left)[chosen]
    share = torch.where(left == 1, states.exact[chosen], 0.0)
    again = [at for at in range(len(chosen)) if left[at] > 1 for _ in range(ROLLOUTS)]
    problems = [states.problems[chosen[at]] for at in again]
    begun = [states.begun[chosen[at]] for at in again]
    texts = sample(model, problems, seed=seed, begun=begun)
    for at, problem, text in zip(again, problems, texts, strict=True):
        share[at] += verify(prompt(problem), text) / ROLLOUTS
    return share


def fit(
    hidden: torch.Tensor, labels: torch.Tensor, decay: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression: weight [1, H], bias [1]. Labels may be shares."""
    mean, std = hidden.mean(0), hidden.std(0) + 1e-6
    inputs = ((hidden - mean) / std).double()
    weight = torch.zeros(1, hidden.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        scores = F.linear(inputs, weight, bias)[:, 0]
        loss = F.binary_cross_entropy_with_logits(scores, labels.double())
        loss = loss + decay * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    solver.step(closure)
    scaled = (weight.detach() / std).float()
    return scaled, (bias.detach() - (scaled.double() @ mean.double())).float()


def area(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Area under the ROC curve: the chance that a good state scores above a bad one, ties half."""
    good, bad = scores[labels > 0.5], scores[labels <= 0.5].sort().values
    if not len(good) or not len(bad):
        return float("nan")
    below = torch.searchsorted(bad, good).double() + torch.searchsorted(bad, good, right=True)
    return float(below.mean() / 2 / len(bad))


def report(states: States, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, float]:
    scores = F.linear(states.hidden, weight, bias)[:, 0]
    left = torch.tensor(states.left)
    rows = {"all": left >= 0, **{f"{n} left": left == n for n in (4, 3, 2, 1)}}
    areas = {name: round(area(scores[row], states.exact[row]), 3) for name, row in rows.items()}
    return {name: value for name, value in areas.items() if value == value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--problems", type=int, default=600, help="of four numbers; half as many of three"
    )
    parser.add_argument("--tries", type=int, default=8)
    parser.add_argument(
        "--rolled-out", type=int, default=4000, help="states with Monte-Carlo labels"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.folder, torch.bfloat16)
    problems = generate(options.problems, 4, seed=options.seed + 7, test=False)
    problems += generate(options.problems // 2, 3, seed=options.seed + 7, test=False)
    states = explore(model, problems, options.tries, options.seed)
    held_out = {size: explore(model, test_set(size), 8, options.seed + 10) for size in (3, 4)}
    some = random.Random(options.seed)  # noqa: S311
    every = range(len(states.left))
    chosen = some.sample(every, min(options.rolled_out, len(every)))
    heads = {
        "exact": (states.hidden, states.exact),
        "monte_carlo": (
            states.hidden[chosen],
            monte_carlo(model, states, chosen, options.seed + 2),
        ),
    }
    for name, (hidden, labels) in heads.items():
        weight, bias = fit(hidden, labels)
        save_file({"weight": weight, "bias": bias}, options.folder / f"reward_{name}.safetensors")
        row = {"head": name, "states": len(labels), "mean_label": round(float(labels.mean()), 3)}
        row |= {f"auc_{size}_numbers": report(s, weight, bias) for size, s in held_out.items()}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
