"""A job in the caller's hand: target + id. One class for all targets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maas_client.jobs import Event, Job
from maas_client.spec.rundir import RunDir
from maas_client.targets.base import Target

_PAUSE = 0.25
"""Seconds between two looks at first; doubled while nothing happens."""
_LONGEST_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A submitted job. Its verbs ask the target each time; nothing is cached."""

    target: Target
    id: str

    def get(self) -> Job:
        return self.target.get(self.id)

    def follow(self, *, after: int = 0) -> Iterator[Event]:
        """Yield events as they come, from number `after` + 1, until the job has ended."""
        pause = _PAUSE
        while True:
            # Status first, events second: the last events are written before
            # the last status, so this order cannot miss them.
            ended = self.get().status.is_terminal
            news = False
            for event in self.target.events(self.id, after=after):
                after, news = event.seq, True
                yield event
            if ended:
                return
            pause = _PAUSE if news else min(2 * pause, _LONGEST_PAUSE)
            time.sleep(pause)

    def wait(self) -> Job:
        """Return when the job has ended."""
        for _ in self.follow():
            pass
        return self.get()

    def cancel(self) -> None:
        self.target.cancel(self.id)

    def download(self, dest: str | Path) -> RunDir:
        return self.target.download(self.id, Path(dest))
