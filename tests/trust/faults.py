"""Every request for memory fails in turn, in the engine and in the native module.

python -m tests.trust.faults
"""

from __future__ import annotations

import re
import time

from tests.trust.evidence import write_evidence
from tests.trust.examples import run

FILES = ("tests/test_faults.py", "tests/test_faults_native.py")


def main() -> int:
    began, passed, said = time.time(), True, ""
    for file in FILES:
        ok, text = run(file, "-m", "nightly")
        passed &= ok
        said += text
        print(f"{file}: {'passed' if ok else 'failed'}{'' if ok else text}", flush=True)

    def failed(what: str) -> dict[str, int]:
        found = re.findall(rf"^(\w+): (\d+) (?:of \d+ )?{what} failed", said, re.M)
        return {name: int(count) for name, count in found}

    counts = {w: failed(w) for w in ("torch_requests", "numpy_requests", "native allocations")}
    write_evidence(
        "faults",
        "one request for memory at a time fails: the call raises or has succeeded, no page is lost, paths "
        "are as before or finished, and go on with the same bits",
        began,
        failed=sum(sum(each.values()) for each in counts.values()),
        **{what.replace(" ", "_"): each for what, each in counts.items()},
        passed=passed,
    )
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
