"""The states of a job, and the one place where they change: in order, each with its time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin

WAITING = ("Queued", "ResumeRequested")
"""States in which a job waits for its turn."""
STOPPABLE = ("Preparing", *WAITING, "Running", "PauseRequested", "Paused")
"""States in which a job can be cancelled."""
LIVE = (*STOPPABLE, "CancelRequested", "Finalizing")
"""States in which a job is not over."""

_NEXT = {
    # What came in through OpenAI's doors: its files are looked at first, and it can be paused.
    "Preparing": ("Queued", "CancelRequested", "Failed"),
    "Queued": ("Running", "PauseRequested", "CancelRequested"),
    "Running": ("Finalizing", "PauseRequested", "CancelRequested", "Failed"),
    # As with a cancellation, the engine may have ended before it heard of it.
    "PauseRequested": ("Paused", "Finalizing", "CancelRequested", "Failed"),
    "Paused": ("ResumeRequested", "CancelRequested"),
    "ResumeRequested": ("Running", "PauseRequested", "CancelRequested"),
    # The engine may have ended before it heard of the cancellation.
    "CancelRequested": ("Canceled", "Completed", "Failed"),
    "Finalizing": ("Completed",),
}


_IN_AZURE_ML = {"PauseRequested": "Running", "ResumeRequested": "Queued"}


def in_azure_ml(job: Body) -> str:
    """The job's state in Azure ML's words, which has none for what is only asked for."""
    return _IN_AZURE_ML.get(job["state"], str(job["state"]))


def first(twin: Twin, state: str = "Queued") -> dict[str, Any]:
    """The fields of a job that has just been accepted."""
    at = twin.clock.iso()
    return {"created": at, "ended": None, "state": state, "history": [[state, at]]}


def move(
    twin: Twin,
    job: Body,
    after: str,
    *,
    only: Collection[str] = LIVE,
    at: float | None = None,
    **fields: Any,
) -> Body:
    """Change a job's state, unless somebody else did so meanwhile: a cancellation is never lost.

    Args:
        twin: the service.
        job: the job as it was read; the store's newest is what counts.
        after: the new state.
        only: the states that it may have now; in any other it is left alone.
        at: when it happened, if not now; seconds since 1970 by the twin's clock.
        fields: set with it.

    Returns:
        The job as it is now.

    Raises:
        ValueError: no job goes from its state to that one.
    """
    with twin.store.transaction():
        latest = twin.store.get("job", job["key"])
        if latest is None or latest["state"] not in only:
            return latest or job
        if after not in _NEXT[latest["state"]]:
            raise ValueError(f"{job['name']}: a job does not go from {latest['state']} to {after}")
        when = twin.clock.iso(at)
        fields |= {"state": after, "history": [*latest["history"], [after, when]]}
        if after not in LIVE:
            fields["ended"] = when
        return twin.store.change("job", job["key"], **fields)
