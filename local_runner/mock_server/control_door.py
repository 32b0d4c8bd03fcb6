"""The door that only the mock has: status and reset."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route
from local_runner.mock_server.worker import LIVE, Worker, run_of
from maas_client.spec.rundir import RunDir

_GONE_SECONDS = 30


def routes(twin: Twin, worker: Worker) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin, worker)
    return [
        Route("GET", "/__mock__/status", door.status, "control"),
        Route("POST", "/__mock__/reset", door.reset, "control"),
    ]


class _Door:
    def __init__(self, twin: Twin, worker: Worker) -> None:
        self._twin = twin
        self._worker = worker

    def status(self, call: Call) -> Reply:
        site, store = self._twin.site, self._twin.store
        states: dict[str, int] = {}
        for doc in store.list("job"):
            states[doc.body["state"]] = states.get(doc.body["state"], 0) + 1
        return Reply(
            body={
                "url": site.url,
                "engine": self._twin.engine.name,
                "base": "" if self._twin.engine.simulates else self._twin.engine.base,
                "as_of": site.as_of.isoformat(),
                "region": site.region,
                "capacity": site.capacity,
                "jobs": states,
                "models": len(store.list("model")),
                "endpoints": len(store.list("endpoint")),
                "blobs": len(store.list("blob")),
            }
        )

    def reset(self, call: Call) -> Reply:
        """Forget everything; jobs that run are cancelled first."""
        live = [doc.body for doc in self._twin.store.list("job") if doc.body["state"] in LIVE]
        for job in live:
            self._twin.store.change("job", job["key"], state="CancelRequested")
        self._worker.wake()
        self._worker.wait_until_idle(_GONE_SECONDS)
        for job in live:
            _stop(run_of(self._twin, job))
        self._twin.store.clear()
        self._twin.blobs.clear()
        shutil.rmtree(self._twin.site.home / "runs", ignore_errors=True)
        return Reply(body={"reset": True, "cancelled": len(live)})


def _stop(run: RunDir) -> None:
    """Whoever did not stop when asked, in all that time, is stopped."""
    process = run.process()
    if process is not None and run.process_is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
