"""Who answers at the endpoints: a child process with the weights, or canned words that say so."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from local_runner.mock_server.engine import Engine, tail
from local_runner.mock_server.errors import ServiceError, user_error

Piece = Mapping[str, Any]
"""`{"delta": text}`, and at last `{"done": True, "finish_reason": …, "usage": {…}}`."""


class Speaker(Protocol):
    """Answers with a base model and an adapter."""

    def warm_up(self, model: str) -> None:
        """Get ready for a base model, without waiting for it."""

    def is_ready(self, model: str) -> bool:
        """Whether a question would be answered at once."""

    def fault(self) -> str | None:
        """Why nothing can be answered, or None."""

    def answer(
        self, model: str, adapter: Path | None, question: Mapping[str, Any]
    ) -> Iterator[Piece]:
        """The answer in pieces."""

    def close(self) -> None:
        """Let go of the process."""


class CannedSpeaker:
    """For simulated jobs: no weights, and an answer that says so."""

    def warm_up(self, model: str) -> None:
        """Nothing to load."""

    def is_ready(self, model: str) -> bool:
        return True

    def fault(self) -> str | None:
        return None

    def answer(
        self, model: str, adapter: Path | None, question: Mapping[str, Any]
    ) -> Iterator[Piece]:
        words = f"[SIMULATED] No model answered. {model} was asked.".split(" ")
        limit = int(question.get("max_tokens") or 256)
        for place, word in enumerate(words[:limit]):
            yield {"delta": word if place == 0 else f" {word}"}
        asked = sum(len(str(turn["content"]).split()) for turn in question["messages"])
        made = min(len(words), limit)
        yield {
            "done": True,
            "finish_reason": "stop" if made == len(words) else "length",
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": made,
                "total_tokens": asked + made,
            },
        }

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass
class ChildSpeaker:
    """One process that holds the base; questions are answered one after another."""

    engine: Engine
    log: Path
    _child: subprocess.Popen[str] | None = None
    _model: str = ""
    _ready: bool = False
    _fault: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _asked: int = 0

    def warm_up(self, model: str) -> None:
        self._fault = None  # a new try
        threading.Thread(target=self._warm_up, args=(model,), daemon=True).start()

    def _warm_up(self, model: str) -> None:
        with self._lock:
            try:
                self._open(model)
            except ServiceError as error:
                self._fault = error.message

    def is_ready(self, model: str) -> bool:
        child = self._child
        return self._ready and self._model == model and child is not None and child.poll() is None

    def fault(self) -> str | None:
        return self._fault

    def answer(
        self, model: str, adapter: Path | None, question: Mapping[str, Any]
    ) -> Iterator[Piece]:
        with self._lock:
            child = self._open(model)
            self._asked += 1
            words = dict(question) | {
                "id": str(self._asked),
                "adapter": str(adapter) if adapter else None,
            }
            finished = False
            try:
                self._write(child, words)
                while True:
                    piece = self._read(child)
                    finished = bool(piece.get("done") or piece.get("error"))
                    if (error := piece.get("error")) is not None:
                        raise user_error(error["message"], inner="InvalidPrompt")
                    yield piece
                    if finished:
                        return
            finally:
                if not finished:
                    self._end()  # nobody listens any more: what is still being said is of no use

    def close(self) -> None:
        with self._lock:
            self._end()

    def _open(self, model: str) -> subprocess.Popen[str]:
        """The process, started where there is none or it holds another base."""
        if self._child is not None and (self._model != model or self._child.poll() is not None):
            self._end()
        if self._child is None:
            with self.log.open("a") as log:
                self._child = subprocess.Popen(
                    self.engine.answer_command(model),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            self._model, self._fault = model, None
            self._read(self._child)
            self._ready = True
        return self._child

    def _end(self) -> None:
        child, self._child, self._ready = self._child, None, False
        if child is not None:
            child.kill()
            child.communicate()

    def _write(self, child: subprocess.Popen[str], words: Mapping[str, Any]) -> None:
        assert child.stdin is not None  # noqa: S101 - opened as a pipe
        try:
            child.stdin.write(json.dumps(words) + "\n")
            child.stdin.flush()
        except OSError as error:
            raise ServiceError(
                503, "ServiceUnavailable", "The model's process has ended."
            ) from error

    def _read(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        assert child.stdout is not None  # noqa: S101 - opened as a pipe
        while line := child.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                if "id" not in answer and (error := answer.get("error")):
                    self._fault = str(error.get("message"))
                    break
                return answer
        self._fault = self._fault or tail(self.log) or "the model's process ended"
        raise ServiceError(503, "ServiceUnavailable", f"The model cannot answer: {self._fault}")


def make_speaker(engine: Engine, home: Path) -> Speaker:
    """The speaker that belongs to the engine."""
    return CannedSpeaker() if engine.simulates else ChildSpeaker(engine, home / "answer.log")
