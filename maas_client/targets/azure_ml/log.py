"""What azure-ai-ml prints while it streams a job, as numbered events. Pure."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maas_client.jobs import Event, EventKind, JobStatus

METRICS = (
    "step",
    "max_steps",
    "loss",
    "eval_loss",
    "learning_rate",
    "grad_norm",
    "epoch",
    "tokens_per_second",
    "seconds_left",
)
_WHOLE = ("step", "max_steps")
_HEADER = re.compile(r"^Streaming (\S+\.txt)$")


@dataclass
class StreamReader:
    """Keeps the job's own log lines out of one `jobs.stream`, which wraps them in chatter.

    A stream that broke is started again and prints each file from its top: `seen` is carried over
    to the next reader, so that no line comes twice.
    """

    seen: dict[str, int] = field(default_factory=dict)
    """Log file -> lines of it that were read, blank ones not counted."""
    lines: list[str] = field(default_factory=list)
    _printed: dict[str, int] = field(default_factory=dict)
    _file: str | None = None
    _rest: str = ""
    _skip: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the stream showed a log and then came to its own end."""
        return bool(self._printed) and self._file is None

    def again(self) -> StreamReader:
        """A reader for the same job's next stream."""
        return StreamReader(self.seen, self.lines)

    def feed(self, text: str) -> None:
        """Take what was printed; a half line waits for its end."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._take(line.rstrip("\r"))

    def _take(self, line: str) -> None:
        if self._skip:  # the ruler under a header
            self._skip -= 1
        elif (header := _HEADER.match(line)) is not None:
            self._file, self._skip = header[1], 1
        elif line == "Execution Summary":
            self._file = None
        elif self._file is not None and line.strip():
            # Blank lines are not counted: the SDK prints some of its own in between.
            count = self._printed[self._file] = self._printed.get(self._file, 0) + 1
            if count > self.seen.get(self._file, 0):
                self.seen[self._file] = count
                self.lines.append(line)


def read_line(line: str) -> tuple[EventKind, str, Mapping[str, Any]]:
    """A metric where the line is a dict as Hugging Face's trainer prints it, else a log line."""
    text = line.strip()
    if text.startswith("{") and text.endswith("}") and (data := _metrics(text)):
        return "metric", _metric_words(data), data
    return "log", line.rstrip(), {}


def _metrics(text: str) -> dict[str, Any]:
    try:
        raw = ast.literal_eval(text)
        if not isinstance(raw, dict) or not {"loss", "eval_loss"} & raw.keys():
            return {}
        # transformers 5 prints the numbers as text.
        found = {key: float(raw[key]) for key in METRICS if raw.get(key) is not None}
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return {}
    if not all(math.isfinite(value) for value in found.values()):
        return {}  # a loss that is not a number is said in the trainer's own words
    return {key: int(value) if key in _WHOLE else value for key, value in found.items()}


def _metric_words(data: Mapping[str, Any]) -> str:
    step = f"step {data['step']}" if "step" in data else f"epoch {data.get('epoch', 0):g}"
    losses = [f"{key} {data[key]:.4f}" for key in ("loss", "eval_loss") if key in data]
    return f"{step}: {', '.join(losses)}"


class EventLog:
    """The events of one job, numbered so that every process that reads the job counts alike.

    The order is always the same: running, the log's lines, the end.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lines = 0
        """Log lines that were taken."""
        self._status = JobStatus.QUEUED

    def update(
        self,
        status: JobStatus,
        lines: Sequence[str],
        *,
        at: float,
        complete: bool = True,
        error: str | None = None,
    ) -> None:
        """Take what is new.

        Args:
            status: where the job stands.
            lines: log lines after the `self.lines` that were taken before.
            at: when they were seen.
            complete: whether no line can follow.
            error: why the job failed.
        """
        if self._status is JobStatus.QUEUED and (lines or status is not JobStatus.QUEUED):
            began = bool(lines) or status not in (JobStatus.CANCELLED, JobStatus.FAILED)
            if began:
                self._become(JobStatus.RUNNING, at)
        for line in lines:
            self._add(at, *read_line(line))
        self.lines += len(lines)
        if status.is_terminal and not complete:
            return
        if status not in (self._status, JobStatus.QUEUED):
            self._become(status, at, error)

    def _become(self, status: JobStatus, at: float, error: str | None = None) -> None:
        self._status = status
        message = f"{status}: {error}" if error else str(status)
        self._add(at, "status", message, {"status": str(status)})

    def _add(self, at: float, kind: EventKind, message: str, data: Mapping[str, Any]) -> None:
        self.events.append(Event(len(self.events) + 1, at, kind, message, data))
