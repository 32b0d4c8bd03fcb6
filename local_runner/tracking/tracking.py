"""Tells the sinks what a run says, while it trains or afterwards.

Training never waits for a sink and never fails with it: a thread of its own tells, and what it could not
tell is said at the end, with the command that does it again.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

from local_runner import inputs
from local_runner.tracking.sinks import MLFLOW_VARIABLE, Sink, asked_for, note
from maas_client.errors import MaasError, RunnerError
from maas_client.jobs import Event
from maas_client.spec.rundir import RunDir


class Tracking:
    """Sinks that are told by a thread.

    Args:
        run: whose words they are; its `tracking.json` says in the end where they can be read.
        sinks: who is told.
    """

    def __init__(self, run: RunDir, sinks: Sequence[Sink]) -> None:
        self._run = run
        self._sinks = list(sinks)
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def take(self, event: Event) -> None:
        """Hand on what the run says; returns at once."""
        if event.kind == "metric":
            self._queue.put(event)

    def finish(self) -> None:
        """Wait until all is told, and tell the end."""
        self._queue.put(None)
        self._thread.join()
        status = self._run.read_status()
        if status is not None:
            self._each(lambda sink: sink.finish(status))
        note(self._run, places=[sink.place for sink in self._sinks])

    def _tell(self) -> None:
        over = False
        while not over:
            events = [self._queue.get()]
            while not self._queue.empty():
                events.append(self._queue.get())
            over = events[-1] is None
            told = [event for event in events if event is not None]
            self._each(lambda sink, told=told: sink.take(told))  # type: ignore[misc]

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                act(sink)
            except Exception as error:  # noqa: BLE001 - whatever a sink raises, the run goes on
                self._sinks.remove(sink)
                _give_up(self._run, f"{sink.place}: not all was told: {error}")


def start(
    run: RunDir, *, mlflow: str | None = None, tensorboard: Path | None = None
) -> Tracking | None:
    """Begin to tell the sinks that were asked for; None where there are none, or none can be told."""
    if not (mlflow or tensorboard or os.environ.get(MLFLOW_VARIABLE)):
        return None
    try:
        sinks = asked_for(run, inputs.read_plan(run), mlflow=mlflow, tensorboard=tensorboard)
    except MaasError as error:
        _give_up(run, str(error))
        return None
    return Tracking(run, sinks)


def _give_up(run: RunDir, why: str) -> None:
    """Say it where the run's log goes, and where the client looks."""
    print(f"warning: {why}", file=sys.stderr)
    note(run, trouble=why)


def track(run: RunDir, *, mlflow: str | None = None, tensorboard: Path | None = None) -> list[str]:
    """Tell the sinks all of a run that has ended, wherever it ran; the places where it can be seen.

    Raises:
        RunnerError: the run goes on, nothing was asked for, or a sink failed.
    """
    plan, status = inputs.read_plan(run), run.read_status()
    if status is None or not status.status.is_terminal:
        raise RunnerError(f"{run.path} has not ended", hint="Wait for it, or resume it.")
    sinks = asked_for(run, plan, mlflow=mlflow, tensorboard=tensorboard)
    if not sinks:
        raise RunnerError(
            "there is nothing to tell", hint="Name a place: --mlflow URI, or --tensorboard FOLDER."
        )
    metrics = [event for event in run.events() if event.kind == "metric"]
    for sink in sinks:
        try:
            sink.take(metrics)
            sink.finish(status)
        except Exception as error:
            raise RunnerError(f"{sink.place}: not all was told: {error}") from error
    places = [sink.place for sink in sinks]
    note(run, places=places, trouble=None)
    return places
