"""A process with one base, and those who wait for its words."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from local_runner.mock_server.engine import tail
from local_runner.mock_server.errors import ServiceError, user_error

Heard = SimpleQueue[dict[str, Any] | None]
"""What somebody who asked is told; None when there is nobody any more to tell it."""
_OVER = frozenset(("done", "error"))
_LOOK = 0.1
"""Seconds between two looks whether the asker is still there, while nothing is heard."""


class Child:
    """Questions go to it as they come; a thread reads what it says and hands it to whoever asked.

    Args:
        command: starts it.
        log: gets its error output.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("a") as stream:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
            )
        self._log = log
        self._numbers = itertools.count(1)
        self._askers: dict[str, Heard] = {}
        self._dropped: set[str] = set()
        """Questions whose end it has not acknowledged yet."""
        self._lock = threading.Lock()
        self._pen = threading.Lock()
        self._settled = threading.Event()
        self.ready = False
        self.fault: str | None = None
        """Why it has ended."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self.fault is None and self._process.poll() is None

    @property
    def running(self) -> int:
        """Answers that it still makes, as far as it has said."""
        with self._lock:
            return len(self._askers) + len(self._dropped)

    def wait(self, gone: threading.Event) -> None:
        """Until it is ready.

        Args:
            gone: set when nobody waits any more.

        Raises:
            ServiceError: it has ended instead, or nobody waits.
        """
        while not self._settled.wait(_LOOK):
            _check(gone)
        if not self.ready:
            raise self._ended()

    def ask(
        self, questions: Sequence[Mapping[str, Any]], gone: threading.Event
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The answers in pieces, each with its question's place; they are made side by side.

        Args:
            questions: asked all at once.
            gone: set when whoever asked has hung up.

        Raises:
            ServiceError: it has ended, cannot answer, or nobody listens: that stops the answers.
        """
        places = {str(next(self._numbers)): place for place in range(len(questions))}
        heard: Heard = SimpleQueue()
        with self._lock:
            if (
                self.fault is not None
            ):  # its reader has looked after all who asked, and looks no more
                raise self._ended()
            self._askers |= dict.fromkeys(places, heard)
        left = set(places)
        try:
            for number, place in places.items():
                self._say({**questions[place], "id": number})
            while left:
                piece = _next(heard, gone)
                if piece is None:
                    left.clear()
                    raise self._ended()
                if not piece.keys().isdisjoint(_OVER):
                    left.discard(piece["id"])
                if (error := piece.get("error")) is not None:
                    raise user_error(error["message"], inner="InvalidPrompt")
                yield places[piece["id"]], piece
        finally:
            for number in left:
                self._cancel(number)

    def close(self) -> None:
        """End it, and whoever still waits for it."""
        if self.fault is None:
            self.fault = "the model was unloaded"
        self._process.kill()
        self._reader.join()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            _close(stream)

    def _cancel(self, number: str) -> None:
        with self._lock:
            if self._askers.pop(number, None) is None:
                return  # it has ended meanwhile
            self._dropped.add(number)
        self._say({"cancel": number})

    def _say(self, words: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101 - opened as a pipe
        line = json.dumps(words) + "\n"
        try:
            with self._pen:
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except (OSError, ValueError):
            return  # it is gone, which its reader tells everybody who waits

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - opened as a pipe
        for line in self._process.stdout:
            # A library may print what it likes, and a killed process leaves half a line.
            with contextlib.suppress(ValueError):
                if line.startswith("{"):
                    self._hand_on(json.loads(line))
        self._process.wait()
        if self.fault is None:
            self.fault = tail(self._log) or "the model's process ended"
        with self._lock:
            left = list(self._askers.values())
            self._askers.clear()
            self._dropped.clear()
        for heard in left:
            heard.put(None)
        self._settled.set()

    def _hand_on(self, words: dict[str, Any]) -> None:
        if words.get("ready"):
            self.ready = True
            self._settled.set()
        elif "id" not in words and (error := words.get("error")):
            self.fault = str(error.get("message"))
        else:
            number = str(words.get("id"))
            with self._lock:
                over = not words.keys().isdisjoint(("done", "error", "cancelled"))
                take = self._askers.pop if over else self._askers.get
                heard = take(number, None)
                if over:
                    self._dropped.discard(number)
            if heard is not None:
                heard.put(words)

    def _ended(self) -> ServiceError:
        return ServiceError(503, "ServiceUnavailable", f"The model cannot answer: {self.fault}")


def _next(heard: Heard, gone: threading.Event) -> dict[str, Any] | None:
    """The next words, as long as somebody wants them."""
    while True:
        _check(gone)
        with contextlib.suppress(Empty):
            return heard.get(timeout=_LOOK)


def _check(gone: threading.Event) -> None:
    if gone.is_set():
        raise ServiceError(499, "ClientClosedRequest", "The client has hung up.")


def _close(stream: IO[str] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except OSError:
        return  # what was not sent has nobody to go to
