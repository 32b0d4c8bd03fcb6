"""A job in the caller's hand: target + id. One class for all targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from maas_client.errors import TargetError
from maas_client.jobs import Event, Job
from maas_client.spec.rundir import RunDir
from maas_client.targets.base import Target

_PAUSE = 0.25
"""Seconds between two looks at first; doubled while nothing happens."""
_LONGEST_PAUSE = 5.0
_PATIENCE = 600.0
"""Seconds for which a target may not answer, before following it is given up."""

OnLine = Callable[[TargetError | None], None]


def _may_pass(error: Exception) -> bool:
    return isinstance(error, TargetError) and error.may_pass


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A submitted job. Its verbs ask the target each time; nothing is cached."""

    target: Target
    id: str
    found: bool = field(default=False, compare=False)
    """Whether an earlier submission of the same job was found instead of making a second one."""

    def get(self) -> Job:
        return self.target.get(self.id)

    def follow(self, *, after: int = 0, on_line: OnLine = lambda _: None) -> Iterator[Event]:
        """Yield events as they come, from number `after` + 1, until the job has ended.

        A target that does not answer is asked again, for ten minutes.

        Args:
            after: the number of the last event that is known.
            on_line: told the error each time that the target did not answer, and None when it does
                again.
        """
        pause = _PAUSE
        while True:
            ended, news = self._look(after, on_line)
            for event in news:
                after = event.seq
                yield event
            if ended:
                return
            pause = _PAUSE if news else min(2 * pause, _LONGEST_PAUSE)
            time.sleep(pause)

    def _look(self, after: int, on_line: OnLine) -> tuple[bool, list[Event]]:
        """Whether the job has ended, and the events after number `after`."""
        import stamina

        for turn in stamina.retry_context(
            on=_may_pass, attempts=None, timeout=_PATIENCE, wait_initial=_PAUSE
        ):
            with turn:
                try:
                    # Status first, events second: the last events are written before
                    # the last status, so this order cannot miss them.
                    ended = self.get().status.is_terminal
                    news = list(self.target.events(self.id, after=after))
                except TargetError as error:
                    if error.may_pass:
                        on_line(error)
                    raise
        if turn.num > 1:
            on_line(None)
        return ended, news

    def wait(self) -> Job:
        """Return when the job has ended."""
        for _ in self.follow():
            pass
        return self.get()

    def cancel(self) -> None:
        self.target.cancel(self.id)

    def download(self, dest: str | Path) -> RunDir:
        return self.target.download(self.id, Path(dest))
