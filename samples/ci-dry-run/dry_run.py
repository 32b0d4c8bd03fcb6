"""A dry run for CI: the job of the night, against a twin in which everything goes wrong that may.

    python samples/ci-dry-run/dry_run.py

No account, no GPU, nothing is trained: the engine is simulated, and says so. The service throttles, loses
the reply to the very request that submits the job, and takes six hours, which pass in seconds. In the end
there is one job, completed, and one model; anything else ends this program with 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def maas(*words: str) -> str:
    """A `maas` command; its output. What goes wrong ends the program."""
    command = [sys.executable, "-m", "maas_client", *words]
    print("$ maas", *words, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout)
        raise SystemExit(f"maas {words[0]} ended with {done.returncode}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ["MAAS_MOCK_HOME"] = home
        maas("mock", "serve", "--engine", "simulate", "--simulate-seconds", "21600", "--detach")
        try:
            outages()
            maas("submit", str(HERE / "job.yaml"), "--target", "mock", "--wait")
            check()
        finally:
            maas("mock", "stop")


def outages() -> None:
    """What a bad night looks like."""
    maas("mock", "time", "--scale", "3600")
    maas("mock", "fault", "lost-reply", "--method", "PUT", "--path", "/jobs/", "--once")
    maas("mock", "fault", "status", "--status", "429", "--method", "GET", "--path", "/jobs/",
         "--rate", "0.2", "--times", "5")  # fmt: skip
    maas("mock", "fault", "cut", "--method", "GET", "--path", "/details", "--once")


def check() -> None:
    """One job, one model, and the outages were felt."""
    print(maas("mock", "fault"))
    jobs = json.loads(maas("jobs", "list", "--target", "mock", "--json"))
    found = [(job["id"], job["status"], job["output_model"]) for job in jobs]
    print(found)
    if found != [("nightly", "succeeded", "nightly:1")]:
        raise SystemExit("not exactly one job that succeeded")
    journal = [json.loads(line) for line in maas("mock", "journal", "--last", "5000").splitlines()]
    felt = {entry["fault"] for entry in journal if entry.get("fault")}
    if "lost-reply" not in felt:
        raise SystemExit("the reply was not lost: this run proves nothing")
    print(f"{len(journal)} calls, outages felt: {', '.join(sorted(felt))}")


if __name__ == "__main__":
    main()
