"""How a run is asked to stop: a signal is noted, and obeyed at the end of a step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class StopRequested(Exception):  # noqa: N818 - not a fault
    """Somebody asked the run to stop; the words say who, and where it stopped."""


@dataclass
class Signals:
    """Whether a signal came."""

    number: int = 0
    """0 for none."""


@contextmanager
def signals() -> Iterator[Signals]:
    """SIGINT and SIGTERM are noted; a second one ends the process at once."""
    caught = Signals()

    def note(number: int, _: object) -> None:
        caught.number = number
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
