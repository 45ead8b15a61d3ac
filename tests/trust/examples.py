"""The property tests with far more examples than on every push, and calls that must be refused, one file of
tests after the other.

    python -m tests.trust.examples                            # all of them: hours
    python -m tests.trust.examples --examples 20000 tests/test_merge_states.py
    python -m tests.trust.examples --invalid-calls 100000 tests/test_invalid_calls.py
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.trust.evidence import ROOT, commit, read_evidence, write_evidence

INVALID = "tests/test_invalid_calls.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--invalid-calls", type=int, default=100_000)
    parser.add_argument("files", nargs="*", default=property_tests())
    args = parser.parse_args()
    os.environ["PYTTC_EXAMPLES"] = str(args.examples)
    os.environ["PYTTC_INVALID_CALLS"] = str(args.invalid_calls)
    passed, ran = True, read_evidence("examples").get("files", {})
    for file in args.files:
        start = time.time()
        ok, said = run(file)
        passed &= ok
        print(f"{file}: {'passed' if ok else 'failed'}, {time.time() - start:.0f} s", flush=True)
        if not ok:
            print(said)
        if file == INVALID:
            found = re.findall(r"^(\w+): (\d+) calls refused", said, re.M)
            refused = {name: int(count) for name, count in found}
            write_evidence(
                "invalid_calls",
                "valid calls of every op spoiled in one argument: refused by native and reference alike, "
                "naming an argument, with all arguments unchanged",
                start,
                refused=sum(refused.values()),
                ops=refused,
                passed=ok,
            )
            continue
        counts = [int(n) for n in re.findall(r"(\d+) passing(?: examples)?,", said)]
        ran[file] = {
            "asked_of_each_property": args.examples,
            "properties": len(counts),
            "examples": sum(counts),
            "passed": ok,
            "seconds": round(time.time() - start),
            "commit": commit(),
        }
        write_evidence(
            "examples",
            "hypothesis examples that passed, a file of tests",
            time.time() - sum(each["seconds"] for each in ran.values()),
            properties=sum(each["properties"] for each in ran.values()),
            examples=sum(each["examples"] for each in ran.values()),
            files=ran,
        )
    return 0 if passed else 1


def property_tests() -> list[str]:
    """The files whose number of examples can be set."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    mine = [f for f in files if re.search(r"\bEXAMPLES\b|hypothesis", f.read_text())]
    return [str(Path("tests") / file.name) for file in mine] + [INVALID]


def run(file: str, *options: str) -> tuple[bool, str]:
    """Whether the tests of a file passed, and all they said."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-rP", "--hypothesis-show-statistics"]
    command = [*pytest, file, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    raise SystemExit(main())
