"""The files that one execution leaves, and the only code that knows their names.

    <run>/
      job.yaml          the job as submitted
      plan.json         every resolved value with its source
      status.json       where the run stands: status, error, process, times
      events.jsonl      what happened, one event a line
      metrics.jsonl     losses and rates, one step a line
      run.log           what the runner printed
      lock              held by the process that trains
      checkpoints/step-000010/
      checkpoints/epoch-001/   an adapter that can be loaded, where each epoch's is kept
      checkpoints/best-000010/ what had the best evaluation, while the run goes on
      adapter/          PEFT layout, safetensors
      merged/           the whole model with what was trained in it: where asked for, or where all of it was
      evaluations/      what was measured of it later, one file for each set of rows
      manifest.json     digest of every input and output
      origin.json       which hosted job this was downloaded from
      tracking.json     where else its numbers went

Files are written whole or not at all (write, fsync, rename); a reader ignores a half-written last
line. The runner writes, everyone reads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from maas_client.errors import RunDirError
from maas_client.jobs import Event, EventKind, JobStatus

EPOCH_FILE = "epoch.json"
"""Beside an epoch's adapter: which epoch, after which step, and when."""
KEPT_EPOCHS = 3
"""How many of them stay, as OpenAI's service has it."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What `status.json` says."""

    status: JobStatus
    error: str | None = None
    started_at: float | None = None
    """Seconds since 1970, UTC."""
    ended_at: float | None = None
    simulated: bool = False
    """Whether a simulation ran, and nothing was trained."""
    base: str = ""
    """What was trained, in words; a stand-in says that it is one."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run directory by its path. Nothing is read until asked for."""

    path: Path

    @property
    def job_file(self) -> Path:
        return self.path / "job.yaml"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "run.log"

    @property
    def cancel_file(self) -> Path:
        """Its presence asks the runner to stop at the next step."""
        return self.path / "cancel"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def merged(self) -> Path:
        return self.path / "merged"

    @property
    def trained(self) -> Path:
        """What the run has made: the adapter, or the whole model where there is none."""
        return self.merged if self.merged.is_dir() and not self.adapter.is_dir() else self.adapter

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def origin_file(self) -> Path:
        return self.path / "origin.json"

    @property
    def tracking_file(self) -> Path:
        return self.path / "tracking.json"

    def tracking(self) -> dict[str, Any]:
        """Where else the run's numbers went: `places`, and `trouble` where that failed."""
        return read_json(self.tracking_file) if self.tracking_file.exists() else {}

    def records(self) -> list[Path]:
        """The small files that say what was asked for and what came of it; those that are there."""
        files = (self.job_file, self.plan_file, self.manifest_file, self.metrics_file)
        return [f for f in (*files, self.events_file, self.status_file) if f.exists()]

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first; half-written ones are not whole."""
        found = self.checkpoints.glob("step-[0-9]*") if self.checkpoints.is_dir() else ()
        return sorted(int(p.name.removeprefix("step-")) for p in found if p.suffix != ".new")

    def best(self, step: int) -> Path:
        return self.checkpoints / f"best-{step:06d}"

    def best_steps(self) -> list[int]:
        """Steps of the best evaluations that are kept whole, oldest first."""
        found = self.checkpoints.glob("best-[0-9]*") if self.checkpoints.is_dir() else ()
        return sorted(int(p.name.removeprefix("best-")) for p in found if p.suffix != ".new")

    def epoch(self, number: int) -> Path:
        return self.checkpoints / f"epoch-{number:03d}"

    def outputs(self) -> list[Path]:
        """Every file of the adapter and of the merged model."""
        return [
            file
            for folder in (self.adapter, self.merged)
            if folder.is_dir()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]

    def has_model(self) -> bool:
        """Whether an adapter, or a merged model, is there."""
        return self.adapter.is_dir() or self.merged.is_dir()

    def epochs(self) -> list[int]:
        """Epochs whose adapter is there whole, oldest first."""
        found = self.checkpoints.glob("epoch-[0-9]*") if self.checkpoints.is_dir() else ()
        return sorted(int(p.name.removeprefix("epoch-")) for p in found if p.suffix != ".new")

    def read_status(self) -> RunStatus | None:
        """None before the run has one."""
        if not self.status_file.exists():
            return None
        raw = read_json(self.status_file)
        return RunStatus(**(raw | {"status": JobStatus(raw["status"])}))

    def write_status(self, status: RunStatus) -> None:
        fields = {name: getattr(status, name) for name in RunStatus.__slots__}
        write_json(self.status_file, fields)

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """Events with a number above `after`, in order."""
        for raw in read_lines(self.events_file):
            if raw["seq"] > after:
                yield Event(**raw)

    def metrics(self) -> list[dict[str, Any]]:
        return list(read_lines(self.metrics_file))

    def is_locked(self) -> bool:
        """Whether a process is training in it right now."""
        return is_held(self.path / "lock")

    def note_process(self, pid: int) -> None:
        """Say which process will train; it takes the lock once it is up."""
        with (self.path / "lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # it is up already, and has said so itself
            stream.truncate(0)
            stream.write(str(pid))

    def process(self) -> int | None:
        """The process that trains, or was to train."""
        try:
            text = (self.path / "lock").read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        return int(text) if text.isdigit() else None

    def process_is_alive(self) -> bool:
        """Whether that process is there and is the runner, not a later one with its number."""
        pid = self.process()
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes() if pid else b""
        except OSError:
            return False
        return b"local_runner" in words and str(self.path).encode() in words

    def interrupt(self) -> bool:
        """Ask the process that trains to keep what it has and end; whether there is one to ask.

        The run can be started again, and goes on.
        """
        pid = self.process()
        if pid is None or not self.process_is_alive():
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the lock goes when the process does, however it ends.

        Raises:
            RunDirError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as stream:
            if not _lock(stream):
                stream.seek(0)
                raise RunDirError(
                    f"{self.path} is being trained by process {stream.read().strip() or 'unknown'}",
                    hint="Wait for it, or name another directory.",
                )
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield


def _lock(stream: IO[str]) -> bool:
    """Take the lock. Whoever only looks whether it is taken holds it for an instant: wait that out."""
    for _ in range(40):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


def is_held(lock: Path) -> bool:
    """Whether a living process holds the lock file."""
    if not lock.exists():
        return False
    with lock.open("r+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class EventWriter:
    """The one writer of a run's events and metrics; goes on numbering where an earlier one stopped."""

    def __init__(self, run: RunDir, *, now: Callable[[], float] = time.time) -> None:
        self._run = run
        self._now = now
        for file in (run.events_file, run.metrics_file):
            drop_torn_line(file)
        self._seq = sum(1 for _ in run.events())

    def write(self, kind: EventKind, message: str, data: Mapping[str, Any] | None = None) -> Event:
        """Append one event; a metric is appended to `metrics.jsonl` as well."""
        self._seq += 1
        event = Event(self._seq, round(self._now(), 3), kind, message, data or {})
        if kind == "metric":
            append_line(self._run.metrics_file, {"at": event.at, **event.data})
        append_line(self._run.events_file, event.to_json())
        return event


def write_whole(path: Path, content: bytes) -> None:
    """Write the file whole or not at all, and on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file.

    Raises:
        RunDirError: the file is missing or broken.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunDirError(f"{path}: {error.strerror}", hint="Is this a run directory?") from error
    except ValueError as error:
        raise RunDirError(f"{path}: {error}", hint="Is this a run directory?") from error
    if not isinstance(data, dict):
        raise RunDirError(f"{path}: not a JSON object")
    return data


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(data, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file; none where the file is not there yet."""
    try:
        stream = path.open(encoding="utf-8")
    except FileNotFoundError:
        return
    with stream:
        for line in stream:
            if line.endswith("\n"):
                yield json.loads(line)


_BLOCK = 64 * 1024


def drop_torn_line(path: Path) -> None:
    """Cut off the half line that a killed writer left, so that the next line starts clean."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end:  # backwards, as the file may be long
            start = max(0, end - _BLOCK)
            stream.seek(start)
            last = stream.read(end - start).rfind(b"\n")
            if last >= 0:
                stream.truncate(start + last + 1)
                return
            end = start
        stream.truncate(0)


def file_digest(path: Path) -> str:
    """sha256 of the file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
