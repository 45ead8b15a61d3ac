"""Runs fuzz targets under atheris, each in a process of its own: python -m tests.fuzz.run --seconds 60

What they find is kept in tests/fuzz/finds/<target>; their inputs in build/fuzz/<target>.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz import TARGETS
from tests.trust.evidence import ROOT, write_evidence

FINDS = Path(__file__).parent / "finds"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="of each target (60)")
    parser.add_argument("--one", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", default=TARGETS)
    args = parser.parse_args()
    if args.one:
        fuzz(args.one, args.seconds)
    began, found = time.time(), {}
    for name in args.targets:
        command = [sys.executable, "-m", "tests.fuzz.run", "--one", name]
        command += ["--seconds", str(args.seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        said = done.stdout + done.stderr
        ran = [int(n) for n in re.findall(r"^(?:#|Done )(\d+)", said, re.M)]
        found[name] = {"inputs": max(ran, default=0), "failed": done.returncode != 0}
        print(name, found[name], flush=True)
        if done.returncode:
            print(said[-4000:])
    write_evidence(
        "fuzz",
        "inputs that a coverage-guided fuzzer (atheris) gave to each target",
        began,
        inputs=sum(each["inputs"] for each in found.values()),
        seconds_of_each=args.seconds,
        targets=found,
    )
    return int(any(each["failed"] for each in found.values()))


def fuzz(name: str, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["pyttc"]):
        module = importlib.import_module(f"tests.fuzz.{name}")
    corpus, finds = ROOT / "build/fuzz" / name, FINDS / name
    for folder in (corpus, finds):
        folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(module.SEEDS):
        (corpus / f"seed{i}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={finds}/", "-max_len=600"]
    atheris.Setup([name, *options, "-rss_limit_mb=4096", str(corpus), str(finds)], module.target)
    atheris.Fuzz()


if __name__ == "__main__":
    raise SystemExit(main())
