"""Fine-tuning jobs: create, list, look at, cancel, pause, resume; their events and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence

from local_runner.mock_server.lifecycle import LIVE, STOPPABLE, move
from local_runner.mock_server.openai import job_words, tuning
from local_runner.mock_server.openai.access import everywhere, invalid, is_azure
from local_runner.mock_server.openai.lists import has_metadata, page, wanted_metadata
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route
from local_runner.mock_server.worker import Worker

_MOST_SECONDS, _LOOK = 5.0, 0.02
"""How long a cancellation waits for the engine, so that its answer says `cancelled`, as the service's."""
_TEXT, _MAP = {"type": ["string", "null"]}, {"type": ["object", "null"]}
_NEW = {
    "type": "object",
    "required": ["model", "training_file"],
    "properties": {
        "model": {"type": "string"},
        "training_file": {"type": "string"},
        "validation_file": _TEXT,
        "suffix": _TEXT,
        "seed": {"type": ["integer", "null"]},
        "method": _MAP,
        "hyperparameters": _MAP,
        "integrations": {"type": ["array", "null"]},
        "metadata": _MAP,
    },
}


def routes(twin: Twin, worker: Worker) -> list[Route]:
    """The routes of this door."""
    door, every, verbs = _Door(twin, worker), "/fine_tuning/jobs", "fine_tuning.jobs"
    one = f"{every}/{{job}}"
    return [
        *everywhere("POST", every, door.create, call=f"{verbs}.create", body=_NEW),
        *everywhere("GET", every, door.list, call=f"{verbs}.list"),
        *everywhere("GET", one, door.get, call=f"{verbs}.retrieve"),
        *everywhere("POST", f"{one}/cancel", door.cancel, call=f"{verbs}.cancel"),
        *everywhere("POST", f"{one}/pause", door.pause, call=f"{verbs}.pause"),
        *everywhere("POST", f"{one}/resume", door.resume, call=f"{verbs}.resume"),
        *everywhere("GET", f"{one}/events", door.events, call=f"{verbs}.list_events"),
        *everywhere(
            "GET", f"{one}/checkpoints", door.checkpoints, call=f"{verbs}.checkpoints.list"
        ),
    ]


class _Door:
    def __init__(self, twin: Twin, worker: Worker) -> None:
        self._twin = twin
        self._worker = worker

    def create(self, call: Call) -> Reply:
        asked = tuning.read(self._twin, call.json(), azure=is_azure(call))
        job = tuning.accept(self._twin, asked)
        self._worker.wake()
        return self._answer(job, call)

    def list(self, call: Call) -> Reply:
        wanted = wanted_metadata(call.query)
        jobs = [doc.body for doc in self._twin.store.list("job") if "openai" in doc.body]
        rows = [
            job_words.shown(self._twin, job, azure=is_azure(call))
            for job in jobs
            if has_metadata(job["openai"]["metadata"], wanted)
        ]
        return page(rows, call.query, default=20, most=100)

    def get(self, call: Call) -> Reply:
        return self._answer(self._found(call), call)

    def cancel(self, call: Call) -> Reply:
        job = self._moved(call, "CancelRequested", STOPPABLE, done=("CancelRequested",))
        end = time.monotonic() + _MOST_SECONDS
        while job["state"] in LIVE and time.monotonic() < end:
            time.sleep(_LOOK)
            job = self._found(call)
        return self._answer(job, call)

    def pause(self, call: Call) -> Reply:
        stages = ("Queued", "Running", "ResumeRequested")
        done = ("PauseRequested", "Paused")
        return self._answer(self._moved(call, "PauseRequested", stages, done=done), call)

    def resume(self, call: Call) -> Reply:
        done = ("ResumeRequested",)
        return self._answer(self._moved(call, "ResumeRequested", ("Paused",), done=done), call)

    def events(self, call: Call) -> Reply:
        rows = job_words.events(self._twin, self._found(call))
        return page(rows, call.query, default=20, most=1000)

    def checkpoints(self, call: Call) -> Reply:
        rows = job_words.checkpoints(self._twin, self._found(call))
        return page(rows, call.query, default=10, most=100)

    def _moved(self, call: Call, after: str, only: Sequence[str], *, done: Sequence[str]) -> Body:
        """The job in its new state; asking twice is no fault.

        Raises:
            ServiceError: it cannot come to it from where it is.
        """
        job = self._found(call)
        if job["state"] not in done:
            before = job["state"]
            job = move(self._twin, job, after, only=only)
            if job["state"] not in (after, *done):
                raise invalid(
                    f"Job {job['name']} is {job_words.STATUS[before]}: "
                    f"{call.path.rpartition('/')[2]} is not possible.",
                    param=None,
                    code="invalid_job_state",
                )
            self._worker.wake()
        return job

    def _found(self, call: Call) -> Body:
        return tuning.find(self._twin, call.params["job"])

    def _answer(self, job: Body, call: Call) -> Reply:
        return Reply(body=job_words.shown(self._twin, job, azure=is_azure(call)))
