"""A process that answers: questions come as JSON lines, answers go as JSON lines, many at a time.

    <- {"ready": true, "base": {…}, "folds_system": false}
    -> {"id": "1", "adapter": null, "messages": […], "max_tokens": 48, "temperature": 0, …}
    -> {"id": "2", …}
    <- {"id": "1", "delta": "Hel"} … {"id": "2", "delta": "…"}
    <- {"id": "1", "done": true, "finish_reason": "stop", "usage": {…}}
    -> {"cancel": "2"}
    <- {"id": "2", "cancelled": true}
    <- {"id": "3", "error": {…}}

Questions share the forward passes. A cancelled answer ends before the next one; what had ended by itself is
not acknowledged again. The process ends when nobody asks any more (end of input) and all is answered.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from local_runner.generate import Answer, Answerer, Ask, Piece
from local_runner.models import base as bases
from maas_client.errors import MaasError, RunnerError


def serve(base: bases.Base, questions: TextIO, answers: TextIO) -> None:
    """Answer until the input ends."""
    answerer = Answerer(base)
    desk = _Desk(answerer, answers)
    folds = not answerer.tokenizer.template.keeps_system
    desk.write({"ready": True, "base": base.info.to_json(), "folds_system": folds})
    lines: SimpleQueue[str | None] = SimpleQueue()
    # The next question is read while the others are answered.
    threading.Thread(target=_read, args=(questions, lines), daemon=True).start()
    try:
        asking = True
        while asking or answerer.running:
            while asking and not (lines.empty() and answerer.running):
                line = lines.get()
                asking = line is not None
                if line is not None:
                    desk.take(line)
            desk.go_on()
    except BrokenPipeError:
        return  # whoever asked is gone


def _read(questions: TextIO, lines: SimpleQueue[str | None]) -> None:
    for line in questions:
        lines.put(line)
    lines.put(None)


class _Desk:
    """Who asked what, and whom a piece goes to."""

    def __init__(self, answerer: Answerer, answers: TextIO) -> None:
        self._answerer, self._answers = answerer, answers
        self._open: dict[Any, Answer] = {}

    def take(self, line: str) -> None:
        """Begin an answer, or drop one."""
        number = None
        try:
            raw = json.loads(line)
            number = raw.get("id")
            if "cancel" in raw:
                self._cancel(raw["cancel"])
            else:
                self._begin(number, raw)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - a template raises what it likes; the next question counts
            self._refuse(number, error)

    def go_on(self) -> None:
        """One step, and what came of it."""
        self._answerer.step()
        for number, answer in list(self._open.items()):
            while answer.pieces:
                self.write({"id": number} | _words(answer.pieces.popleft()))
            if answer.fault is not None:
                self._refuse(number, answer.fault)
            if answer.over:
                del self._open[number]

    def write(self, data: Mapping[str, Any]) -> None:
        self._answers.write(json.dumps(data, ensure_ascii=False) + "\n")
        self._answers.flush()

    def _begin(self, number: Any, raw: Mapping[str, Any]) -> None:
        if number in self._open:
            raise RunnerError(f"a question with the id {number} is being answered")
        self._open[number] = self._answerer.begin(_ask(raw))

    def _cancel(self, number: Any) -> None:
        answer = self._open.pop(number, None)
        if answer is not None:
            self._answerer.drop(answer)
            self.write({"id": number, "cancelled": True})

    def _refuse(self, number: Any, error: Exception) -> None:
        if not isinstance(error, MaasError):
            words = f"{type(error).__name__}: {error}"
            error = RunnerError(f"the question cannot be answered: {words}")
        self.write({"id": number, "error": error.to_json()})


def _ask(raw: Mapping[str, Any]) -> Ask:
    """The question in our words; what is absent or null has its default."""
    given = {key: value for key, value in raw.items() if value is not None}
    stop = given.get("stop", ())
    return Ask(
        messages=given["messages"],
        adapter=Path(given["adapter"]) if given.get("adapter") else None,
        max_tokens=int(given.get("max_tokens", 256)),
        temperature=float(given.get("temperature", 0.0)),
        top_p=float(given.get("top_p", 1.0)),
        seed=raw.get("seed"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )


def _words(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"delta": piece}
    usage = {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": piece.prompt_tokens + piece.completion_tokens,
    }
    return {"done": True, "finish_reason": piece.finish_reason, "usage": usage}
