"""The door that only the mock has: status, controls, time, snapshots, journal, reset."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from local_runner.clock import LAST, MAX_SCALE
from local_runner.mock_server.control import snapshots
from local_runner.mock_server.control.journal import Journal
from local_runner.mock_server.errors import ServiceError, conflict, not_found, user_error
from local_runner.mock_server.lifecycle import LIVE, STOPPABLE, move
from local_runner.mock_server.runs import run_of
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route, whole_number
from local_runner.mock_server.worker import Worker
from maas_client.spec.job import NAME
from maas_client.spec.rundir import RunDir

_GONE_SECONDS = 30
_MOST_ADVANCE = 366 * 86_400.0
_OBJECT = {"type": "object"}
_TIME = {
    "type": "object",
    "properties": {"scale": {"type": "number"}, "advance": {"type": "number"}},
}


def routes(twin: Twin, worker: Worker, journal: Journal) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin, worker, journal)

    def route(method: str, path: str, handler: Any, body: dict[str, Any] | None = None) -> Route:
        return Route(method, f"/__mock__/{path}", handler, "control", source="ours", body=body)

    return [
        route("GET", "status", door.status),
        route("GET", "controls", door.controls),
        route("PATCH", "controls", door.change, _OBJECT),
        route("GET", "time", door.time),
        route("POST", "time", door.change_time, _TIME),
        route("GET", "snapshots", door.snapshots),
        route("PUT", "snapshots/{name}", door.snapshot),
        route("DELETE", "snapshots/{name}", door.drop_snapshot),
        route("POST", "snapshots/{name}/restore", door.restore),
        route("GET", "journal", door.read_journal),
        route("DELETE", "journal", door.forget_journal),
        route("POST", "reset", door.reset),
    ]


class _Door:
    def __init__(self, twin: Twin, worker: Worker, journal: Journal) -> None:
        self._twin = twin
        self._worker = worker
        self._journal = journal

    def status(self, call: Call) -> Reply:
        site, store, engine = self._twin.site, self._twin.store, self._twin.engine
        states: dict[str, int] = {}
        for doc in store.list("job"):
            states[doc.body["state"]] = states.get(doc.body["state"], 0) + 1
        return Reply(
            body={
                "url": site.url,
                "engine": engine.name,
                "base": "" if engine.simulates else engine.base,
                "as_of": site.as_of.isoformat(),
                "region": site.region,
                "seed": self._twin.dice.seed,
                "capacity": self._twin.controls.capacity,
                "faults": len(self._twin.controls.settings.faults),
                "time": self._twin.clock.iso(),
                "time_scale": self._twin.clock.pace.scale,
                "jobs": states,
                "models": store.count("model"),
                "endpoints": store.count("endpoint"),
                "answers": self._twin.speaker.running(),
                "blobs": store.count("blob"),
                "journal": str(self._journal.file),
                "journal_lost": self._journal.lost,
            }
        )

    def controls(self, call: Call) -> Reply:
        return Reply(body=self._twin.controls.settings.model_dump(mode="json"))

    def change(self, call: Call) -> Reply:
        """Set what the body has: capacity, quota, latency, faults."""
        settings = self._twin.controls.change(call.json())
        self._worker.wake()
        return Reply(body=settings.model_dump(mode="json"))

    def time(self, call: Call) -> Reply:
        clock = self._twin.clock
        return Reply(body={"time": clock.iso(), **asdict(clock.pace)})

    def change_time(self, call: Call) -> Reply:
        """Go faster, or jump ahead. Only simulated jobs can follow."""
        if not self._twin.engine.simulates:
            raise conflict("Only the simulate engine has a time of its own.")
        given = call.json()
        scale = _number(given, "scale", 0, MAX_SCALE)
        advance = _number(given, "advance", 0, _MOST_ADVANCE)
        if self._twin.clock.time() + (advance or 0.0) > LAST:
            raise user_error("advance: no calendar goes that far.", inner="InvalidControl")
        self._twin.clock.change(scale=scale, advance=advance or 0.0)
        self._worker.wake()
        return self.time(call)

    def snapshots(self, call: Call) -> Reply:
        return Reply(body={"value": snapshots.names(self._twin.site.home)})

    def snapshot(self, call: Call) -> Reply:
        """Keep everything as it is now."""
        name = _name(call)
        with self._still():
            self._refuse_live("A snapshot")
            pace = self._twin.clock.keep()
            snapshots.take(self._twin.store, self._twin.site.home, name, pace)
        return Reply(201, {"name": name})

    def restore(self, call: Call) -> Reply:
        """Everything as it was then."""
        name = _name(call)
        if name not in snapshots.names(self._twin.site.home):
            raise not_found("Snapshot", name)
        with self._still():
            self._refuse_live("Restoring")
            snapshots.restore(self._twin.store, self._twin.site.home, name)
            self._twin.blobs.drafts.forget()
            self._twin.controls.reload()
            self._twin.clock.go_back(snapshots.pace(self._twin.site.home, name))
        return Reply(body={"name": name})

    def drop_snapshot(self, call: Call) -> Reply:
        name = _name(call)
        if not snapshots.drop(self._twin.site.home, name):
            raise not_found("Snapshot", name)
        return Reply(200, {"name": name})

    def read_journal(self, call: Call) -> Reply:
        """The last entries, as JSON lines; `$top` says how many."""
        most = whole_number(call.query.get("$top")) or 100
        return Reply(body=_tail(self._journal.file, most), media_type="application/x-ndjson")

    def forget_journal(self, call: Call) -> Reply:
        self._journal.forget()
        return Reply(body={"forgotten": True})

    def reset(self, call: Call) -> Reply:
        """Forget everything but the snapshots and the journal; jobs that run are cancelled first."""
        live = [doc.body for doc in self._twin.store.list("job", states=LIVE)]
        for job in live:
            move(self._twin, job, "CancelRequested", only=STOPPABLE)
        self._worker.wake()
        self._worker.wait_until_idle(_GONE_SECONDS)
        with self._still():
            # Those that came meanwhile, too.
            live += [doc.body for doc in self._twin.store.list("job", states=LIVE)]
            for job in live:
                _stop(run_of(self._twin, job))
            snapshots.forget_all(self._twin.store, self._twin.site.home)
            self._twin.blobs.drafts.forget()
            self._twin.controls.reset()
            self._twin.clock.go_back(None)
        return Reply(body={"reset": True, "cancelled": len({job["key"] for job in live})})

    @contextlib.contextmanager
    def _still(self) -> Iterator[None]:
        """Nobody changes the state meanwhile, neither documents nor blocks nor controls."""
        twin = self._twin
        with twin.controls.lock, twin.blobs.drafts.still(), twin.store.alone():
            yield

    def _refuse_live(self, what: str) -> None:
        live = self._twin.store.list("job", states=LIVE, limit=1)
        if live:
            raise conflict(
                f"{what} needs quiet: job {live[0].body['name']} is {live[0].body['state']}. "
                "Wait for it or cancel it."
            )


def _name(call: Call) -> str:
    name = call.params["name"]
    if not NAME.fullmatch(name) or name.startswith("."):
        raise user_error(f"{name!r} is not a name of a snapshot.", inner="InvalidControl")
    return name


def _number(given: dict[str, Any], key: str, low: float, high: float) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or not low <= value <= high:
        raise ServiceError(
            400,
            "UserError",
            f"{key} must be a number from {low:g} to {high:g}.",
            inner="InvalidControl",
        )
    return float(value)


def _tail(file: Path, most: int) -> bytes:
    try:
        with file.open("rb") as stream:
            return b"".join(deque(stream, maxlen=most))
    except FileNotFoundError:
        return b""


def _stop(run: RunDir) -> None:
    """Whoever did not stop when asked, in all that time, is stopped."""
    process = run.process()
    if process is not None and run.process_is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
