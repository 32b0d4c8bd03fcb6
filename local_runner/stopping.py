"""How a run is asked to stop: a signal is noted, and obeyed at the end of a step; and why it failed."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from local_runner.memory import is_out_of_memory
from maas_client.errors import RunnerError


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


def in_our_words(error: Exception, *, smaller: str = "") -> Exception:
    """A failure that a person can do something about, as a MaasError; any other as it is.

    Args:
        error: the failure.
        smaller: the setting with which the run would take less memory.
    """
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        return RunnerError(
            f"the disk is full: {text}",
            hint="Free some space and run it again: it resumes from its last checkpoint.",
        )
    if is_out_of_memory(error):
        setting = smaller or "auto_find_batch_size, or a lower max_seq_length"
        return RunnerError(
            f"there is not enough memory: {text.splitlines()[0] if text else 'none is left'}",
            hint=f"Run it again with {setting}. With --max-memory it goes on where it was.",
        )
    return RunnerError(text) if isinstance(error, OSError) else error
