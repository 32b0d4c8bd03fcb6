"""What is known of a running job from its events, and where it is shown."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maas_client.cli import render
from maas_client.errors import TargetError
from maas_client.jobs import Event, Job, JobStatus

if TYPE_CHECKING:
    from maas_client.cli.view import View

_AT_ONCE = 0.5
"""Seconds in which events came together."""
_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as blocks, at most `width` of them; each stands for the mean of its share."""
    values = [value for value in values if math.isfinite(value)]
    if not values or width < 1:
        return ""
    count = min(len(values), width)
    means = []
    for part in range(count):
        share = values[part * len(values) // count : (part + 1) * len(values) // count]
        means.append(sum(share) / len(share))
    low, high = min(means), max(means)
    top = len(_BLOCKS) - 1
    return "".join(
        _BLOCKS[round((mean - low) / (high - low) * top) if high > low else 0] for mean in means
    )


def clock(seconds: float) -> str:
    """`2:05`, or `1:02:05` from an hour on."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """What is known of a job from its events. Pure: it asks nobody, not even for the time.

    Args:
        job: as it was when the view began.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.status = JobStatus.QUEUED if not job.status.is_terminal else job.status
        self.losses: list[float] = []
        self.eval_losses: list[float] = []
        self.step, self.total = 0, None
        self.tokens_per_second: float | None = None
        self._first_at = job.created_at
        self._last: dict[str, Any] = {}
        self._first_step: tuple[int, float] | None = None
        self._began: float | None = None
        self._last_at: float | None = None
        self.ended_at: float | None = job.ended_at

    def take(self, event: Event) -> None:
        """Take what the event says."""
        data = event.data
        self._first_at = min(self._first_at or event.at, event.at)
        if event.kind == "status" and "status" in data:
            self.status = JobStatus(data["status"])
            if self.status.is_terminal:
                self.ended_at = self.ended_at or event.at
        if event.kind != "metric":
            return
        self._last = dict(data)
        self.step = data.get("step", self.step)
        self.total = data.get("max_steps", self.total)
        self.tokens_per_second = data.get("tokens_per_second", self.tokens_per_second)
        self.losses += [data["loss"]] if "loss" in data else []
        self.eval_losses += [data["eval_loss"]] if "eval_loss" in data else []
        if "loss" in data:
            self._pace(event.at)

    def _pace(self, at: float) -> None:
        """Note when the steps came. Those that came with the first were there before: no pace."""
        if self._began is None or at - self._began < _AT_ONCE:
            self._began = self._began or at
            self._first_step = (self.step, at)
        self._last_at = at

    def seconds_left(self, now: float) -> float | None:
        """What the trainer says, else what its pace so far says; None is unknown."""
        if self.status.is_terminal or self._last_at is None or self._first_step is None:
            return None
        if (said := self._last.get("seconds_left")) is not None:
            return float(said) - max(0.0, now - self._last_at)
        steps = self.step - self._first_step[0]
        took = self._last_at - self._first_step[1]
        if self.total is None or steps <= 0 or took <= 0:
            return None
        return (self.total - self.step) * took / steps - max(0.0, now - self._last_at)

    def elapsed(self, now: float) -> float | None:
        """Seconds since it was made; a run that went on was made before its record says."""
        return None if self._first_at is None else (self.ended_at or now) - self._first_at


class Live:
    """A running job: a live view on a terminal, plain lines elsewhere, JSON lines for programs."""

    def __init__(self, entry: Job, *, as_json: bool) -> None:
        self._job = entry
        self._json = as_json
        self._view: View | None = None
        self._lost = False

    def __enter__(self) -> Live:
        if not self._json and sys.stdout.isatty():
            from maas_client.cli.view import View

            self._view = View(self._job)
            self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._view.stop()

    def event(self, entry: Event) -> None:
        if self._view is not None:
            self._view.event(entry)
        else:
            render.event(entry, as_json=self._json)

    def on_line(self, problem: TargetError | None) -> None:
        """The target does not answer, or does again; said once, and never on stdout."""
        lost, self._lost = self._lost, problem is not None
        words = f"reconnecting: {problem.message.partition(': ')[0].strip()}" if problem else ""
        if self._view is not None:
            self._view.trouble(words)
        elif lost != self._lost:
            render.trouble(words or "connected again")
