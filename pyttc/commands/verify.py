"""`pyttc verify`: the package's promises, tried on this machine."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def add(commands: Any) -> None:
    parser = commands.add_parser("verify", help="tries the package's promises on this machine")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> int:
    from ..verify import checks, verify

    done, names = [], [name for name, _, _ in checks()]
    console = Console(highlight=False, soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(names[0])
        for check in verify():
            done.append(check)
            progress.update(task, description=names[min(len(done), len(names) - 1)])
            if not args.json:
                mark = "ok  " if check.passed else "FAIL"
                took = f"{check.compared:,} {check.unit}, {check.seconds:.1f} s"
                lines = [f"{mark} {check.name}: {took}", *check.failures[:5]]
                console.print("\n     ".join(lines), markup=False)
    failed = sum(not check.passed for check in done)
    if args.json:
        print(json.dumps([vars(check) | {"passed": check.passed} for check in done], indent=2))
    else:
        seconds = sum(check.seconds for check in done)
        console.print(f"{len(done) - failed} of {len(done)} checks hold, in {seconds:.0f} s")
    return 1 if failed else 0
