"""How long it takes to say hello, side by side with what it stands on."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    return time.perf_counter() - start


def test_help_takes_at_most_a_sixth_of_importing_the_sdk() -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import azure.ai.ml"], check=True
    )  # warms the disk
    pairs = [
        (
            seconds("-m", "maas_client", "--help"),
            seconds("-W", "ignore", "-c", "import azure.ai.ml"),
        )
        for _ in range(3)
    ]
    assert statistics.median(ours / theirs for ours, theirs in pairs) <= 1 / 6
