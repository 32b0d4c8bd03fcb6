"""Who answers at the endpoints: a child process with the weights, or canned words that say so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from local_runner.mock_server.child import Child
from local_runner.mock_server.engine import Engine
from local_runner.mock_server.errors import ServiceError

Piece = Mapping[str, Any]
"""`{"delta": text}`, and at last `{"done": True, "finish_reason": …, "usage": {…}}`."""

Questions = Sequence[Mapping[str, Any]]
_MOST_BASES = 2
"""Bases in memory at once; the one that was asked longest ago goes, as soon as nobody listens to it."""


class Speaker(Protocol):
    """Answers with a base model and an adapter."""

    def warm_up(self, model: str) -> None:
        """Get ready for a base model, without waiting for it."""

    def is_ready(self, model: str) -> bool:
        """Whether a question would be answered at once."""

    def fault(self) -> str | None:
        """Why nothing can be answered, or None."""

    def answers(
        self, model: str, adapter: Path | None, questions: Questions, gone: threading.Event
    ) -> Iterator[tuple[int, Piece]]:
        """The answers in pieces, each with its question's place; they may be made side by side.

        Args:
            model: the catalogue's name of the base.
            adapter: None for the base alone.
            questions: as `questions.checked` makes them.
            gone: set when whoever asked has hung up.

        Raises:
            ServiceError: nobody can answer, or nobody listens any more.
        """

    def running(self) -> int:
        """How many answers are being made."""

    def close(self) -> None:
        """Let go of the processes."""


class CannedSpeaker:
    """For simulated jobs: no weights, and an answer that says so."""

    def warm_up(self, model: str) -> None:
        """Nothing to load."""

    def is_ready(self, model: str) -> bool:
        return True

    def fault(self) -> str | None:
        return None

    def answers(
        self, model: str, adapter: Path | None, questions: Questions, gone: threading.Event
    ) -> Iterator[tuple[int, Piece]]:
        for place, question in enumerate(questions):
            for piece in self._pieces(model, question):
                yield place, piece

    def _pieces(self, model: str, question: Mapping[str, Any]) -> Iterator[Piece]:
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

    def running(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass
class _Held:
    """A process, and how many need it."""

    child: Child
    users: int = 0


@dataclass
class ChildSpeaker:
    """A process for each base. Questions to a base are answered together; adapters are theirs."""

    engine: Engine
    log: Path
    _held: dict[str, _Held] = field(default_factory=dict)
    """By base; the one that was asked last is the last."""
    _fault: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def warm_up(self, model: str) -> None:
        self._fault = None  # a new try
        threading.Thread(target=self._warm_up, args=(model,), daemon=True).start()

    def _warm_up(self, model: str) -> None:
        try:
            with self._using(model, threading.Event()):
                pass
        except ServiceError as error:
            self._fault = error.message

    def is_ready(self, model: str) -> bool:
        with self._lock:
            held = self._held.get(self.engine.weights(model))
        return held is not None and held.child.ready and held.child.alive

    def fault(self) -> str | None:
        return self._fault

    def answers(
        self, model: str, adapter: Path | None, questions: Questions, gone: threading.Event
    ) -> Iterator[tuple[int, Piece]]:
        folder = str(adapter) if adapter else None
        with self._using(model, gone) as child:
            yield from child.ask([{**each, "adapter": folder} for each in questions], gone)

    def running(self) -> int:
        with self._lock:
            return sum(held.child.running for held in self._held.values())

    def close(self) -> None:
        with self._lock:
            held, self._held = self._held, {}
        for each in held.values():
            each.child.close()

    @contextmanager
    def _using(self, model: str, gone: threading.Event) -> Iterator[Child]:
        with self._lock:
            held = self._take(model)
            held.users += 1
        try:
            held.child.wait(gone)
            yield held.child
        finally:
            with self._lock:
                held.users -= 1
                if held in self._held.values() and held.child.fault is not None:
                    self._fault = held.child.fault
                self._trim()

    def _take(self, model: str) -> _Held:
        """The process, started where there is none or it has ended."""
        base = self.engine.weights(model)
        held = self._held.pop(base, None)
        if held is None or not held.child.alive:
            if held is not None:
                held.child.close()
            held = _Held(Child(self.engine.answer_command(model), self.log))
            self._fault = None
        self._held[base] = held
        return held

    def _trim(self) -> None:
        idle = [base for base, held in self._held.items() if not held.users]
        for base in idle[: max(0, len(self._held) - _MOST_BASES)]:
            self._held.pop(base).child.close()


def one_answer(
    speaker: Speaker,
    model: str,
    adapter: Path | None,
    question: Mapping[str, Any],
    gone: threading.Event,
) -> Iterator[Piece]:
    """The pieces of one answer; the arguments are those of `Speaker.answers`."""
    pieces = speaker.answers(model, adapter, [question], gone)
    try:
        for _, piece in pieces:
            yield piece
    finally:
        pieces.close()  # type: ignore[attr-defined]  # a generator; its end stops the model


def make_speaker(engine: Engine, home: Path) -> Speaker:
    """The speaker that belongs to the engine."""
    return CannedSpeaker() if engine.simulates else ChildSpeaker(engine, home / "answer.log")
