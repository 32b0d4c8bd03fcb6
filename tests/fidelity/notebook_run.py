"""Runs the notebook as a stranger's program, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("notebook.py")


def run_notebook(
    environment: dict[str, str], rows: Path, folder: Path, *, cwd: Path | None = None
) -> dict[str, Any]:
    """What the notebook saw."""
    done = subprocess.run(
        [sys.executable, str(NOTEBOOK), str(rows), str(folder)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen
