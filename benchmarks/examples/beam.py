"""Beam search guided by a process-reward head, with a calculator as a tool:

python -m benchmarks.examples.beam [--model DIR] [--width 16]
"""

import argparse
from pathlib import Path

import pyttc
from pyttc import search, tasks
from pyttc.tasks.countdown import generate
from pyttc.tasks.countdown_search import options
from pyttc.tasks.countdown_text import prompt


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder; the first of pyttc's own by default")
    parser.add_argument("--width", type=int, default=16)
    args = parser.parse_args(arguments)

    folder = Path(args.model or tasks.model_path(tasks.model_names()[0]))
    engine = pyttc.Engine.from_pretrained(folder)
    head = pyttc.LinearHead.from_file(str(folder / "reward_exact.safetensors"))
    questions = [prompt(problem) for problem in generate(8, 4, seed=0, test=True)]

    results = search.solve(
        engine,
        questions,  # all in one batch, each with a beam of its own
        search.Beam(score=head, width=args.width, expand=4),
        search.Budget(tokens=20_000),
        **options(),  # verifier, calculator, and the delimiter of steps, where the head scores
    )
    for result in results:
        print(f"{result.prompt} {'solved' if result.verified else 'not solved'} {result.answer!r}")
    print(f"{results[0].tokens} tokens\n{results[0].cost}")


if __name__ == "__main__":
    main()
