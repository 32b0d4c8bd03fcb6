"""This machine as a target: a child process that is watched through its run directory."""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from maas_client.errors import (
    ConflictError,
    NotFoundError,
    RunDirError,
    SpecError,
    TargetError,
)
from maas_client.jobs import Event, Job, JobStatus
from maas_client.plan import Plan, plan_from_json
from maas_client.settings import LocalSettings
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits, local_limits
from maas_client.spec.loading import dump_job, load_job
from maas_client.spec.rundir import (
    RunDir,
    RunStatus,
    read_json,
    write_json,
    write_whole,
)
from maas_client.targets import runner
from maas_client.targets.base import Finding

_NOT_COPIED = ("checkpoints", "lock", "cancel")


class LocalTarget:
    """Runs jobs on this machine, each in its run directory under `settings.runs`.

    Args:
        settings: the folder of the runs.
        engine: `train`, or `simulate` for the same files in a second with nothing trained.
    """

    def __init__(self, settings: LocalSettings, *, engine: str = "train") -> None:
        self.name = settings.name
        self.runs = Path(settings.runs).resolve()
        self.engine = engine
        self.identity = f"local {self.runs} {engine}"
        self.base = settings.base
        self.max_memory = settings.max_memory
        self._tracking = runner.tracking(settings.mlflow, settings.tensorboard)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def limits(self, job: FineTuningJob) -> Limits:
        today = dt.datetime.now(dt.UTC).date()
        absent = self.engine == "train" and importlib.util.find_spec("bitsandbytes") is None
        return local_limits(
            job.model,
            target=self.name,
            today=today,
            hyperparameters=job.hyperparameters,
            missing=frozenset({"bitsandbytes"} if absent else ()),
        )

    def submit(self, plan: Plan) -> Job:
        """Start the job, or go on with it where the same plan was interrupted.

        Raises:
            ConflictError: the job's name belongs to a run with another plan.
        """
        if plan.job.name is None:
            raise TargetError("the job has no name yet", hint="Submit it through flow.submit.")
        if self.engine == "train":
            runner.require()
        run = RunDir(self.runs / plan.job.name)
        if run.plan_file.exists():
            if plan_from_json(read_json(run.plan_file)).meaning != plan.meaning:
                raise ConflictError(
                    f"{run.path} holds a run with another plan",
                    hint="Give the job another name, or remove the directory.",
                )
            job = self.get(plan.job.name)
            if job.status is JobStatus.SUCCEEDED or self._is_alive(run):
                return job
        run.path.mkdir(parents=True, exist_ok=True)
        moved = plan.job.rebased(Path.cwd(), run.path)
        write_whole(run.job_file, dump_job(moved).encode())
        write_json(run.plan_file, plan.to_json())
        run.cancel_file.unlink(missing_ok=True)
        run.write_status(RunStatus(JobStatus.QUEUED, base=plan.base.label if plan.base else ""))
        words = (self.engine, "--quiet", *self._tracking, str(run.path))
        child = runner.spawn(words, log=run.log_file)
        self._children[plan.job.name] = child
        run.note_process(child.pid)
        return self.get(plan.job.name)

    def get(self, job_id: str) -> Job:
        run = self._run(job_id)
        # Life first, status second: a runner writes its last status before it ends.
        alive = self._is_alive(run)
        status = run.read_status() or RunStatus(JobStatus.QUEUED)
        state, error = status.status, status.error
        if not state.is_terminal and not alive:
            state = JobStatus.FAILED
            error = (
                f"the runner ended without a word; see {run.log_file}. Run it again to resume, with "
                "--max-memory "
                "if the machine ran out of it."
            )
        if state.is_terminal and (child := self._children.pop(job_id, None)) is not None:
            child.wait()  # its last status was its last act; nobody else will collect it
        job = load_job(run.job_file)
        return Job(
            id=job_id,
            status=state,
            model=job.model.path,
            target=self.name,
            display_name=job.display_name or "",
            created_at=run.job_file.stat().st_mtime,
            ended_at=status.ended_at,
            error=error,
            url=run.path.as_uri(),
            simulated=status.simulated,
            base=status.base,
        )

    def list(self, *, limit: int = 50) -> list[Job]:
        files = self.runs.glob("*/plan.json") if self.runs.is_dir() else ()
        newest = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
        return [self._get_or_mark(file.parent.name) for file in newest[:limit]]

    def _get_or_mark(self, job_id: str) -> Job:
        """One broken run directory does not hide the others."""
        try:
            return self.get(job_id)
        except (RunDirError, SpecError) as error:
            return Job(
                job_id, JobStatus.FAILED, "", self.name, error=f"unreadable: {error.message}"
            )

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        return self._run(job_id).events(after=after)

    def cancel(self, job_id: str) -> None:
        run = self._run(job_id)
        if not self.get(job_id).status.is_terminal:
            run.cancel_file.touch()

    def interrupt(self, job_id: str) -> None:
        """Ask the runner to write a checkpoint and end, so that the job can be resumed."""
        run = self._run(job_id)
        if (pid := run.process()) is not None and self._is_alive(run):
            os.kill(pid, signal.SIGINT)
            if (child := self._children.get(job_id)) is not None:
                child.wait()

    def download(self, job_id: str, dest: Path) -> RunDir:
        run = self._run(job_id)
        if dest.resolve() == run.path:
            return run
        if dest.exists() and any(dest.iterdir()):
            raise TargetError(f"{dest} is not empty", hint="Name a new directory.")
        staged = dest.with_name(f"{dest.name}.{os.getpid()}.new")
        shutil.copytree(run.path, staged, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        if dest.exists():
            dest.rmdir()
        staged.replace(dest)
        return RunDir(dest)

    def check(self) -> Sequence[Finding]:
        findings = [
            Finding(module, ok=found, detail="installed" if found else "missing", next_step=step)
            for module in ("local_runner", "torch", "transformers", "peft")
            for found in (importlib.util.find_spec(module) is not None,)
            for step in ("" if found else 'pip install "maas-finetune[train]"',)
        ]
        writable = os.access(self.runs if self.runs.exists() else Path.cwd(), os.W_OK)
        detail = f"runs go to {self.runs}"
        return [*findings, Finding("disk", ok=writable, detail=detail)]

    def close(self) -> None:
        """Nothing to let go of: a running job lives on by itself."""

    def path(self, job_id: str) -> Path:
        """The job's run directory."""
        return self._run(job_id).path

    def _run(self, job_id: str) -> RunDir:
        run = RunDir(self.runs / Path(job_id).name)
        if not run.plan_file.exists():
            raise NotFoundError(
                f"there is no run {job_id} in {self.runs}",
                hint=f"`maas jobs list --target {self.name}` lists them.",
            )
        return run

    def _is_alive(self, run: RunDir) -> bool:
        if run.is_locked():
            return True
        child = self._children.get(run.path.name)
        if child is not None:
            return child.poll() is None
        return run.process_is_alive()
