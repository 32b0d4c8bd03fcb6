"""Time that can run faster and jump ahead: the mock's, and that of the runs that it simulates.

The pace stands in a file, so that a run that has begun follows when it changes. Without the file, or
while it says nothing else, it is the real time.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from maas_client.spec.rundir import read_json, write_json

MAX_SCALE = 1_000_000.0
LAST = dt.datetime(9000, 1, 1, tzinfo=dt.UTC).timestamp()
"""Virtual time stands still from then on: no calendar goes much further."""
_LOOK = 0.05
"""Real seconds between two looks at the file while waiting."""


@dataclass(frozen=True, slots=True)
class Pace:
    """From a moment of real time on, how virtual time goes. Seconds since 1970."""

    real: float = 0.0
    virtual: float = 0.0
    scale: float = 1.0

    def at(self, real: float) -> float:
        """The virtual time at a real one."""
        return min(self.virtual + (real - self.real) * self.scale, LAST)


class Clock:
    """Tells the time by the pace in a file.

    Args:
        file: where the pace is kept; None for real time, always.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._stamp = (0, 0)
        self._pace = Pace()

    @property
    def pace(self) -> Pace:
        """The pace as it is now."""
        if self._file is None:
            return self._pace
        try:
            found = self._file.stat()
        except FileNotFoundError:
            self._stamp, self._pace = (0, 0), Pace()
            return self._pace
        # Two changes may fall in one tick of the file system's clock.
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self._pace, self._stamp = Pace(**read_json(self._file)), stamp
        return self._pace

    def time(self) -> float:
        """Virtual seconds since 1970."""
        return self.pace.at(time.time())

    def iso(self, at: float | None = None) -> str:
        """A moment as Azure writes it; without one, this moment."""
        return dt.datetime.fromtimestamp(self.time() if at is None else at, tz=dt.UTC).isoformat()

    def change(self, *, scale: float | None = None, advance: float = 0.0) -> Pace:
        """From now on go `scale` times as fast as real time, after a jump of `advance` seconds."""
        if self._file is None:
            raise ValueError("real time cannot be changed")
        now = self.now()
        speed = now.scale if scale is None else scale
        write_json(self._file, asdict(Pace(now.real, now.virtual + advance, speed)))
        return self.pace

    def now(self) -> Pace:
        """The pace as if it began now."""
        before, real = self.pace, time.time()
        return Pace(real, before.at(real), before.scale)

    def keep(self) -> Pace | None:
        """What `go_back` needs to come back to this moment; None in real time."""
        return None if self.pace == Pace() else self.now()

    def go_back(self, kept: Pace | None) -> None:
        """It is the moment again that was kept; or real time."""
        if self._file is None:
            return
        if kept is None:
            self._file.unlink(missing_ok=True)
        else:
            write_json(self._file, asdict(Pace(time.time(), kept.virtual, kept.scale)))

    def wait_until(self, moment: float, *, over: Callable[[], bool] = lambda: False) -> bool:
        """Wait for a virtual moment; returns False where `over` said so before."""
        while True:
            if over():
                return False
            left = moment - self.time()
            if left <= 0:
                return True
            scale = self.pace.scale
            time.sleep(min(_LOOK, left / scale) if scale > 0 else _LOOK)
