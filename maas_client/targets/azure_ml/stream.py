"""A job's live log: `jobs.stream` in a thread, and what each thread prints kept apart."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from maas_client.targets.azure_ml.log import StreamReader

_PAUSE = 2.0
"""Seconds before a stream that broke is begun again."""


class Printed(io.TextIOBase):
    """What each thread prints: the SDK only prints what a stream brings, and prints it to stdout."""

    def __init__(self, elsewhere: IO[str]) -> None:
        self._elsewhere = elsewhere
        self._readers: dict[int, Callable[[str], None]] = {}

    def write(self, text: str) -> int:
        self._readers.get(threading.get_ident(), self._elsewhere.write)(text)
        return len(text)

    def flush(self) -> None:
        self._elsewhere.flush()

    @contextmanager
    def to(self, reader: Callable[[str], None]) -> Iterator[None]:
        """Hand what this thread prints to the reader."""
        self._readers[threading.get_ident()] = reader
        try:
            yield
        finally:
            del self._readers[threading.get_ident()]


class Stream:
    """One job's `jobs.stream`, in a thread, begun again where it breaks."""

    def __init__(self, run: Callable[[StreamReader], None]) -> None:
        self._run = run
        self.reader = StreamReader()
        self._thread: threading.Thread | None = None
        self._retry_at = 0.0

    def keep_going(self) -> None:
        """Begin, where it does not run."""
        if not self._is_running() and time.monotonic() > self._retry_at:
            self._retry_at = time.monotonic() + _PAUSE
            self.reader = self.reader.again()
            self._thread = threading.Thread(target=self._run, args=(self.reader,), daemon=True)
            self._thread.start()

    def has_ended(self, *, within: float) -> bool:
        """Whether it ends within so many seconds."""
        if self._thread is not None:
            self._thread.join(within)
        return not self._is_running()

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()
