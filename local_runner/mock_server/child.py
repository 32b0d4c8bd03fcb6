"""A process with one base, and those who wait for its words."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from local_runner.mock_server.engine import tail
from local_runner.mock_server.errors import ServiceError, user_error


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
        self._askers: dict[str, SimpleQueue[dict[str, Any] | None]] = {}
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

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            ServiceError: it has ended instead.
        """
        self._settled.wait()
        if not self.ready:
            raise self._ended()

    def ask(self, question: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The answer in pieces; whoever stops listening stops the answer."""
        number = str(next(self._numbers))
        heard: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        with self._lock:
            if (
                self.fault is not None
            ):  # its reader has looked after all who asked, and looks no more
                raise self._ended()
            self._askers[number] = heard
        over = False
        try:
            self._say(dict(question) | {"id": number})
            while not over:
                piece = heard.get()
                over = piece is None or not piece.keys().isdisjoint(("done", "error"))
                if piece is None:
                    raise self._ended()
                if (error := piece.get("error")) is not None:
                    raise user_error(error["message"], inner="InvalidPrompt")
                yield piece
        finally:
            if not over:
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


def _close(stream: IO[str] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except OSError:
        return  # what was not sent has nobody to go to
