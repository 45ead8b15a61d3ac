"""Sample 64 paths and vote: python -m benchmarks.examples.vote [--model DIR] [--paths 64]"""

import argparse
from collections import Counter

import pyttc
from pyttc import tasks
from pyttc.tasks.countdown import generate
from pyttc.tasks.countdown_text import calculate, prompt, verify


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder; the first of pyttc's own by default")
    parser.add_argument("--paths", type=int, default=64)
    args = parser.parse_args(arguments)

    engine = pyttc.Engine.from_pretrained(args.model or tasks.model_path(tasks.model_names()[0]))
    problem = generate(1, 4, seed=0, test=True)[0]
    question = prompt(problem)  # such as "23,45,67,12>57:"

    paths = engine.prefill(question).fork(args.paths, seed=0)  # the prompt runs once, for all
    for _ in range(3):  # four numbers take three steps
        paths.decode(until="=", max_new_tokens=16)
        results = [calculate(problem, text) for text in paths.text()]
        paths.select([result is not None for result in results])  # illegal steps end here
        paths.append([result for result in results if result is not None])

    votes = Counter(text.split("|")[-1].strip(";") for text in paths.text())
    solved = sum(verify(question, text) for text in paths.text())
    print(f"{question} {len(paths)} of {args.paths} paths are left, {solved} of them solve it")
    for number, count in votes.most_common(5):
        print(f"  {count:4} votes for {number}")
    print(paths.cost)


if __name__ == "__main__":
    main()
