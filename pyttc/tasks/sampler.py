"""Samples Countdown texts from a training model: batched, with the calculator, and no more than
that. It serves training and its reports; pyttc.Engine is for everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .countdown import Problem
from .countdown_text import EOS, PAD, VOCABULARY, calculate, prompt
from .llama import Cache, Llama

IDS = {symbol: i for i, symbol in enumerate(VOCABULARY)}


@torch.inference_mode()
def sample(
    model: Llama,
    problems: Sequence[Problem],
    *,
    seed: int,
    temperature: float = 1.0,
    direct: bool = False,
    begun: Sequence[str] | None = None,
    examples: Sequence[str] = (),
    max_length: int = 128,
    rows: int = 2048,
) -> list[str]:
    """One text for each problem (repeat a problem for several), newline included where it was
    written.

    Rows advance together, one character a pass; prompts and what the calculator writes are forced.
    `begun` is what already stands after each prompt. A text ends with its newline, at max_length
    characters after the examples, or where the calculator refuses a step. temperature 0 takes the
    likeliest.
    """
    generator = torch.Generator().manual_seed(seed)
    texts: list[str] = []
    for at in range(0, len(problems), rows):
        part = problems[at : at + rows]
        starts = [""] * len(part) if begun is None else list(begun[at : at + rows])
        texts += _sample(model, part, starts, generator, temperature, direct, examples, max_length)
    return texts


def _sample(
    model: Llama,
    problems: Sequence[Problem],
    begun: list[str],
    generator: torch.Generator,
    temperature: float,
    direct: bool,
    examples: Sequence[str],
    max_length: int,
) -> list[str]:
    shared = torch.tensor([[IDS[symbol] for symbol in "".join(examples)]], dtype=torch.long)
    cache = Cache(model.shape, 1, shared.shape[1] + max_length, model.dtype)
    if shared.shape[1]:
        model(shared, cache)
    cache.select(torch.zeros(len(problems), dtype=torch.long))
    prompts = [prompt(problem) for problem in problems]
    tokens = torch.full((len(problems), max_length), IDS[PAD])
    lengths = torch.zeros(len(problems), dtype=torch.long)

    def append(row: int, text: str) -> None:
        start = int(lengths[row])
        tokens[row, start : start + len(text)] = torch.tensor([IDS[symbol] for symbol in text])
        lengths[row] = start + len(text)

    def written(row: int) -> str:
        line = tokens[row, len(prompts[row]) : lengths[row]].tolist()
        return "".join(VOCABULARY[token] for token in line)

    for row in range(len(problems)):
        append(row, prompts[row] + begun[row])
    done = torch.zeros(len(problems), dtype=torch.bool)
    alive = torch.arange(len(problems))
    for place in range(max_length - 1):
        logits = model.logits(model(tokens[alive, place : place + 1], cache))[:, 0]
        logits[:, IDS[PAD]] = -torch.inf  # no text holds it
        if temperature > 0:
            noise = torch.empty_like(logits).exponential_(generator=generator)
            chosen = (logits / temperature - noise.log()).argmax(-1)
        else:
            chosen = logits.argmax(-1)
        free = (lengths[alive] == place + 1) & ~done[alive]
        tokens[alive[free], place + 1] = chosen[free]
        lengths[alive[free]] += 1
        done[alive[free & (chosen == IDS[EOS])]] = True
        if not direct:
            for row in alive[free & (chosen == IDS["="])].tolist():
                result = calculate(problems[row], written(row))
                if result is None or int(lengths[row]) + len(result) > max_length:
                    done[row] = True
                else:
                    append(row, result)
        left = torch.nonzero(~done[alive]).flatten()
        if not len(left):
            break
        if len(left) <= 0.75 * len(alive):
            alive = alive[left]
            cache.select(left)
    return [written(row) for row in range(len(problems))]
