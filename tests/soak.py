"""Many clients, many jobs, and a server that is killed: nothing lost, nothing twice, everything in order.

    python -m tests.soak [--jobs 1000] [--clients 50] [--kills 5] [--write benchmarks/README.md]

tests/fidelity/test_durability.py runs a small one; `make soak` runs the whole and writes its result down.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import signal
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.mocking import Mock, mock_command, start_mock
from tests.wire import ENDED, control, job_body, line_to, place_of, put_rows

HEADING = "## Durability"
ORDER = ("Queued", "Running", "Finalizing", "Completed")
OPTIONS = ("--engine", "simulate", "--simulate-seconds", "0", "--capacity", "6")
_PAUSE = 0.25


@dataclass
class Soak:
    """What happened."""

    jobs: int
    clients: int
    kills: int
    accepted: Counter[str] = field(default_factory=Counter)
    """How often the server said that it has a job."""
    tries: int = 0
    """Requests that got no answer and were sent again."""
    killed: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    """Whatever was not as it should be."""


def run(home: Path, *, jobs: int, clients: int, kills: int) -> Soak:
    """The whole: serve, submit and watch, kill and restart, and look at what is there in the end."""
    soak = Soak(jobs, clients, kills)
    began = time.monotonic()
    mock = start_mock(home, *OPTIONS)
    done = threading.Event()
    counts: Counter[str] = Counter()
    try:
        with line_to(mock) as client:
            uri = put_rows(client, mock)
        killer = threading.Thread(target=_kill, args=(soak, home, counts, done))
        killer.start()
        with ThreadPoolExecutor(clients) as pool:
            share = [range(first, jobs, clients) for first in range(clients)]
            list(pool.map(lambda numbers: _client(soak, mock, uri, numbers, counts), share))
        done.set()
        killer.join()
        _check(soak, home)
        with line_to(mock) as client:
            assert client.post("/__mock__/reset", headers=control(mock)).status_code == 200
    finally:
        done.set()
        mock_command(home, "stop")
    soak.seconds = time.monotonic() - began
    return soak


def _client(soak: Soak, mock: Mock, uri: str, numbers: range, counts: Counter[str]) -> None:
    """Submits its jobs, and watches each to its end."""
    try:
        with line_to(mock) as client:
            for number in numbers:
                name = f"job-{number}"
                url = f"{place_of(mock)}/jobs/{name}"
                body = job_body(uri, output=f"model-{number}", seed=str(number))
                answer = _insist(soak, client, "PUT", url, json=body)
                if answer.status_code not in (200, 201):
                    soak.faults.append(f"{name}: {answer.status_code} {answer.text[:200]}")
                    continue
                soak.accepted[name] += 1
                _watch(soak, client, name, url)
                counts["ended"] += 1
    except Exception as error:  # noqa: BLE001 - told at the end, with all the others
        soak.faults.append(f"a client: {error!r}")


def _watch(soak: Soak, client: httpx.Client, name: str, url: str) -> None:
    seen = -1
    end = time.monotonic() + 1800
    while time.monotonic() < end:
        answer = _insist(soak, client, "GET", url)
        status = answer.json()["properties"]["status"] if answer.status_code == 200 else "lost"
        if status not in ORDER or ORDER.index(status) < seen:
            soak.faults.append(f"{name}: {status} after {ORDER[seen]}")
            return
        seen = ORDER.index(status)
        if status in ENDED:
            return
        time.sleep(_PAUSE)
    soak.faults.append(f"{name} is still {ORDER[seen]}")


def _insist(
    soak: Soak, client: httpx.Client, method: str, url: str, **words: Any
) -> httpx.Response:
    """Send it until there is an answer: the server may be dead for a while."""
    end = time.monotonic() + 120
    while True:
        try:
            return client.request(method, url, **words)
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
            soak.tries += 1
            time.sleep(0.05)


def _kill(soak: Soak, home: Path, counts: Counter[str], done: threading.Event) -> None:
    """Kill the server as the work goes on, and start it again."""
    for kill in range(1, soak.kills + 1):
        share = soak.jobs * kill / (soak.kills + 1)
        while counts["ended"] < share:
            if done.wait(0.02):
                return
        state = json.loads((home / "server.json").read_text())
        os.kill(state["pid"], signal.SIGKILL)
        soak.killed += 1
        start_mock(home, *OPTIONS)


def _check(soak: Soak, home: Path) -> None:
    """Look at what the server has kept, behind its back."""
    db = sqlite3.connect(home / "store.sqlite")
    try:
        jobs = {key: json.loads(body) for key, body in
                db.execute("SELECT key, body FROM documents WHERE kind = 'job'")}  # fmt: skip
        models = [key for (key,) in db.execute("SELECT key FROM documents WHERE kind = 'model'")]
    finally:
        db.close()
    expected = {f"job-{number}" for number in range(soak.jobs)}
    if jobs.keys() != expected:
        soak.faults.append(f"lost or invented: {sorted(jobs.keys() ^ expected)[:5]}")
    if sorted(models) != sorted(f"model-{number}/1" for number in range(soak.jobs)):
        soak.faults.append(f"{len(models)} models, and not one for each job")
    for name, job in jobs.items():
        states = tuple(state for state, _ in job["history"])
        times = [dt.datetime.fromisoformat(at) for _, at in job["history"]]
        if states != ORDER or times != sorted(times):
            soak.faults.append(f"{name}: {job['history']}")
        lines = (home / "runs" / job["run"] / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        begun = [event for event in events if event["data"].get("status") == "running"]
        steps = [event["data"]["step"] for event in events if event["kind"] == "metric"]
        if len(begun) != 1 or steps != sorted(set(steps)):
            soak.faults.append(f"{name} ran {len(begun)} times: steps {steps}")


def report(soak: Soak) -> str:
    """The result as a table."""
    rows = [
        ("jobs", soak.jobs), ("clients at once", soak.clients), ("kill -9 of the server", soak.killed),
        ("requests sent again", soak.tries), ("jobs lost", soak.jobs - len(soak.accepted)),
        ("jobs run twice, states out of order, or other faults", len(soak.faults)),
        ("seconds", round(soak.seconds)),
    ]  # fmt: skip
    lines = ["| | |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in rows)]
    day = f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores"
    words = f"Simulated jobs, six at once, each in a process of its own; {day}, shared with the clients."
    return "\n".join([*lines, "", words])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a Markdown file that gets the table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = run(Path(folder), jobs=given.jobs, clients=given.clients, kills=given.kills)
    for fault in soak.faults[:20]:
        print(fault)
    print(report(soak))
    if given.write and not soak.faults:
        from benchmarks.report import write_section

        write_section(given.write, HEADING, report(soak))
    return 1 if soak.faults or soak.killed != given.kills else 0


if __name__ == "__main__":
    raise SystemExit(main())
