"""Sample 64 paths and vote: python -m benchmarks.examples.vote [--model DIR] [--paths 64]"""

import argparse
from collections import Counter

import pyttc
from pyttc import tasks
from pyttc.tasks.countdown import generate
from pyttc.tasks.countdown_text import prompt, verify


def claimed(text: str) -> str:
    """The number that the last step of `45-23=22;67-12=55;55*22=1210;` claims."""
    return text.strip(";\n").rpartition("=")[2]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder; the first of pyttc's own by default")
    parser.add_argument("--paths", type=int, default=64)
    args = parser.parse_args(arguments)

    engine = pyttc.Engine.from_pretrained(args.model or tasks.model_path(tasks.model_names()[0]))
    question = prompt(generate(1, 4, seed=0, test=True)[0])  # such as "23,45,67,12>55:"

    root = engine.prefill(question)  # the prompt runs once,
    paths = root.fork(args.paths, seed=0)  # its keys and values are shared,
    paths.decode(max_new_tokens=64)  # and each path ends by itself

    ended = [text for text, end in zip(paths.text(), paths.ended, strict=True) if end == "eos"]
    votes = Counter(claimed(text) for text in ended)
    solved = sum(verify(question, text) for text in ended)
    print(f"{question} {len(ended)} of {len(paths)} paths ended, {solved} of them solve it")
    for number, count in votes.most_common(5):
        print(f"  {count:4} votes for {number}")
    print(paths.cost)


if __name__ == "__main__":
    main()
