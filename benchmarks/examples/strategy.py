"""A strategy of one's own in 20 lines: python -m benchmarks.examples.strategy [--model DIR]"""

import argparse
from dataclasses import dataclass

import numpy as np

import pyttc
from pyttc import search, tasks
from pyttc.tasks.countdown import generate
from pyttc.tasks.countdown_search import options
from pyttc.tasks.countdown_text import prompt


@dataclass(frozen=True)
class Halving:
    """n paths a prompt; after every step the less likely half of them is dropped."""

    n: int = 64

    def run(self, run):
        paths = run.fork(run.root, self.n)
        while run.open(paths).any():
            run.step(paths)
            scores = run.score(paths, search.mean_logprob)
            run.rank(paths, scores)  # those that came to their end, as answers
            yield paths
            paths = run.select(paths, self.better_half(run, paths, scores))

    def better_half(self, run, paths, scores):
        scores = np.where(run.open(paths), scores, -np.inf)
        best = [rows[np.argsort(-scores[rows])] for _, rows in run.groups(paths)]
        kept = np.concatenate([rows[: (rows.size + 1) // 2] for rows in best])
        return kept[scores[kept] > -np.inf]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder; the first of pyttc's own by default")
    parser.add_argument("--paths", type=int, default=64)
    args = parser.parse_args(arguments)

    engine = pyttc.Engine.from_pretrained(args.model or tasks.model_path(tasks.model_names()[0]))
    questions = [prompt(problem) for problem in generate(4, 4, seed=0, test=True)]
    for result in search.solve(engine, questions, Halving(args.paths), **options()):
        print(f"{result.prompt} {'solved' if result.verified else 'not solved'} {result.answer!r}")


if __name__ == "__main__":
    main()
