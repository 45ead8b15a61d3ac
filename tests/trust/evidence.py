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


def write_evidence(name: str, what: str, began: float, **counts: Any) -> None:
    """docs/trust/<name>.json: what was run here and what it found."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    evidence = {
        "check": name,
        "what": what,
        **counts,
        "seconds": round(time.time() - began),
        "commit": commit.stdout.strip(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
    }
    folder = ROOT / "docs/trust"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(evidence, indent=2) + "\n")
