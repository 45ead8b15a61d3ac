"""What a heavy check found, as a file in docs/trust."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from pyttc.commands.info import cpu_model

ROOT = Path(__file__).resolve().parents[2]


FOLDER = ROOT / "docs/trust"


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip()


def read_evidence(name: str) -> dict[str, Any]:
    """What an earlier run wrote, or nothing."""
    file = FOLDER / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def write_evidence(name: str, what: str, began: float, **counts: Any) -> None:
    """docs/trust/<name>.json: what was run here and what it found."""
    evidence = {
        "check": name,
        "what": what,
        **counts,
        "seconds": round(time.time() - began),
        "commit": commit(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(evidence, indent=2) + "\n")
