"""Takes jobs to their end: starts engines, copies their logs, registers what they made.

One thread, one loop, no memory of its own: each turn looks at the store and at the run directories.
So it does not matter whether this server started an engine or a killed one before it did: a run
whose lock is held is watched, a run that nobody holds is started again, and goes on from its last
checkpoint. Every act can be done twice.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace

from local_runner.mock_server import registration
from local_runner.mock_server.engine import Engine, EngineError, tail
from local_runner.mock_server.judge import hosted
from local_runner.mock_server.lifecycle import LIVE, WAITING, move
from local_runner.mock_server.openai import outcomes
from local_runner.mock_server.runs import log_name, run_of
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import ARTIFACT_STORE, Twin
from maas_client.errors import MaasError
from maas_client.jobs import Event, JobStatus
from maas_client.plan import DataPlan, Plan, make_plan
from maas_client.spec import dataset
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits, local_limits
from maas_client.spec.loading import dump_job
from maas_client.spec.rundir import RunDir, RunStatus, write_json, write_whole

_ENDS = frozenset(status for status in JobStatus if status.is_terminal)
_PAUSE, _IDLE = 0.1, 10.0
"""Seconds between two looks; a request that brings work wakes the worker at once."""
_MOST_STARTS = 5
"""An engine that dies so often without getting on will not do better next time."""

_log = logging.getLogger(__name__)


@dataclass
class Worker:
    """The twin's one worker."""

    twin: Twin
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each run's events when its log was copied last; only spares work."""
    _interrupted: set[str] = field(default_factory=set)
    """Jobs whose engine was asked to end, so that they pause."""
    _wake: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop working; engines that run go on, and are adopted at the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def wait_until_idle(self, seconds: float) -> bool:
        """Whether no job is live any more within the time."""
        end = time.monotonic() + seconds
        while self.twin.store.list("job", states=LIVE):
            if time.monotonic() > end:
                return False
            time.sleep(_PAUSE / 2)
        return True

    def _loop(self) -> None:
        while not self._stop.is_set():
            busy = True
            try:
                busy = self.turn()
            except Exception:
                _log.exception("the worker stumbled, and goes on")
            self._wake.wait(_PAUSE if busy else _IDLE)
            self._wake.clear()

    def turn(self) -> bool:
        """Look at every live job once, the oldest first; returns whether there is any."""
        states = tuple(state for state in LIVE if state != "Paused")
        live = [doc.body for doc in reversed(self.twin.store.list("job", states=states))]
        running = sum(job["state"] not in WAITING for job in live)
        for job in live:
            try:
                if job["state"] == "Preparing":
                    outcomes.validate(self.twin, job)
                elif job["state"] not in WAITING:
                    self._tend(job)
                elif running < self.twin.controls.capacity:
                    running += 1
                    self._tend(move(self.twin, job, "Running", only=WAITING))
            except Exception:  # one job's trouble is not the others'
                _log.exception("job %s stumbled, and is tried again", job["name"])
        return bool(live)

    def _tend(self, job: Body) -> None:
        run = run_of(self.twin, job)
        if not run.plan_file.exists() and not self._prepare(job, run):
            return
        self._look(job, run)
        if "openai" in job:
            outcomes.note_checkpoints(self.twin, job, run)

    def _look(self, job: Body, run: RunDir) -> None:
        # Life first, status second: an engine writes its last status before it ends.
        alive = self._is_alive(job, run)
        status = run.read_status()
        self._copy_log(job, run)
        if status is not None and status.status.is_terminal:
            if not alive:
                self._end(job, run, status)
        elif alive:
            self._stop_if_asked(job, run)
        elif job["state"] == "CancelRequested":
            self._close(job, "Canceled")
        elif job["state"] == "PauseRequested":
            self._pause(job)
        else:
            self._start(job, run)

    def _prepare(self, job: Body, run: RunDir) -> bool:
        """Make the run directory; a job that this engine cannot do fails with the reason."""
        if job["state"] == "CancelRequested":
            self._close(job, "Canceled")
            return False
        try:
            plan = _plan(self.twin, self.twin.engine, job)
        except (MaasError, EngineError, OSError) as error:
            self._close(job, "Failed", error=f"The mock's engine cannot run this job: {error}")
            return False
        write_whole(run.job_file, dump_job(plan.job).encode())
        write_json(run.plan_file, plan.to_json())
        # What really runs is said wherever the job is shown.
        base = plan.base.label if plan.base else "nothing: SIMULATED"
        self.twin.store.change("job", job["key"], base=base, simulated=plan.base is None)
        return True

    def _start(self, job: Body, run: RunDir) -> None:
        lines = len(run.metrics())
        barren = job.get("barren", 0) + 1 if lines == job.get("lines", 0) else 1
        if barren > _MOST_STARTS:
            words = tail(run.log_file)
            self._close(
                job,
                "Failed",
                error=f"The engine ended {barren - 1} times without a result. {words}",
            )
            return
        starts = job.get("starts", 0) + 1
        self.twin.store.change("job", job["key"], starts=starts, barren=barren, lines=lines)
        self._children[job["key"]] = self.twin.engine.start(run, keep_epochs="openai" in job)

    def _is_alive(self, job: Body, run: RunDir) -> bool:
        child = self._children.get(job["key"])
        if child is not None and child.poll() is None:
            return True
        self._children.pop(job["key"], None)
        return run.is_locked() or run.process_is_alive()

    def _copy_log(self, job: Body, run: RunDir) -> None:
        """Say what is new in the log that the service shows."""
        size = run.events_file.stat().st_size if run.events_file.exists() else 0
        if size == self._sizes.get(job["key"]):
            return
        # How it ended is the job's status to tell; the log is the trainer's.
        events = [event for event in run.events() if event.data.get("status") not in _ENDS]
        if not events or events[-1].seq == job.get("seen", 0):
            return
        # Written whole each time: an append that a crash cut off would repeat lines.
        text = "".join(f"{_log_line(event)}\n" for event in events)
        container = self.twin.site.container(ARTIFACT_STORE)
        self.twin.blobs.put(container, log_name(job["name"]), text.encode())
        self.twin.store.change("job", job["key"], seen=events[-1].seq)
        self._sizes[job["key"]] = size

    def _end(self, job: Body, run: RunDir, status: RunStatus) -> None:
        match status.status:
            case JobStatus.SUCCEEDED:
                job = move(
                    self.twin,
                    job,
                    "Finalizing",
                    only=("Running", "PauseRequested"),
                    at=status.ended_at,
                )
                registration.publish(self.twin, job, run)
                self._close(job, "Completed", at=status.ended_at)
            case JobStatus.CANCELLED if job["state"] == "CancelRequested":
                self._close(job, "Canceled", at=status.ended_at)
            case JobStatus.CANCELLED if job["state"] == "PauseRequested":
                self._pause(job, at=status.ended_at)
            case JobStatus.CANCELLED:
                self._start(job, run)  # somebody stopped the engine, but nobody the job
            case _:
                error = status.error or tail(run.log_file)
                self._close(job, "Failed", error=error, at=status.ended_at)

    def _stop_if_asked(self, job: Body, run: RunDir) -> None:
        """Tell the engine of a cancellation, or of a pause: of that once, not to break a step off."""
        if job["state"] == "CancelRequested":
            run.cancel_file.touch()
        elif (
            job["state"] == "PauseRequested"
            and job["key"] not in self._interrupted
            and run.interrupt()
        ):
            self._interrupted.add(job["key"])

    def _pause(self, job: Body, *, at: float | None = None) -> None:
        self._interrupted.discard(job["key"])
        # A job that is paused often has not tried in vain as often.
        move(self.twin, job, "Paused", only=("PauseRequested",), at=at, barren=0)

    def _close(
        self, job: Body, state: str, *, error: str | None = None, at: float | None = None
    ) -> None:
        move(self.twin, job, state, at=at, error=error)
        self._sizes.pop(job["key"], None)
        self._interrupted.discard(job["key"])
        _log.info("job %s %s", job["name"], state)


def _plan(twin: Twin, engine: Engine, job: Body) -> Plan:
    spec = FineTuningJob.model_validate(job["spec"])
    data = {
        name: DataPlan(path, dataset.check(path, spec.task)) for name, path in job["data"].items()
    }
    paths = {key: getattr(spec, key).model_copy(update={"path": data[key].path}) for key in data}
    base = engine.base_info(spec.model.asset_name)
    return make_plan(
        spec.model_copy(update=paths),
        hosted(twin, spec) if engine.simulates else _engine_limits(spec),
        training=data["training_data"],
        validation=data.get("validation_data"),
        base=base,
        threads=None if engine.simulates else engine.threads,
    )


def _engine_limits(spec: FineTuningJob) -> Limits:
    """What the local engine accepts; a system turn is never a reason to fail a job that was taken."""
    here = local_limits(
        spec.model, target="the mock's engine", hyperparameters=spec.hyperparameters
    )
    return replace(here, choices={**here.choices, "system_turns": ("fold",)})


def _log_line(event: Event) -> str:
    """An event as Hugging Face's Trainer prints it on the service: a metric is a dictionary."""
    return str(dict(event.data)) if event.kind == "metric" else event.message
