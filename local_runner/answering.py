"""A process that answers: questions come as JSON lines, answers go as JSON lines.

    <- {"ready": true, "base": {…}}
    -> {"id": "1", "adapter": null, "messages": […], "max_tokens": 48, "temperature": 0, …}
    <- {"id": "1", "delta": "Hel"} … {"id": "1", "done": true, "finish_reason": "stop", "usage": {…}}
    <- {"id": "1", "error": {…}}

It ends when nobody asks any more (end of input).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from local_runner.generate import Answerer, Ask, Ending
from local_runner.models import base as bases
from maas_client.errors import MaasError, RunnerError


def serve(base: bases.Base, questions: TextIO, answers: TextIO) -> None:
    """Answer until the input ends."""

    def write(data: Mapping[str, Any]) -> None:
        answers.write(json.dumps(data, ensure_ascii=False) + "\n")
        answers.flush()

    answerer = Answerer(base)
    write({"ready": True, "base": base.info.to_json()})
    for line in questions:
        number = None
        try:
            raw = json.loads(line)
            number = raw.get("id")
            for piece in answerer.answer(_ask(raw)):
                write({"id": number} | _words(piece))
        except BrokenPipeError:
            return  # whoever asked is gone
        except MaasError as error:
            write({"id": number, "error": error.to_json()})
        except Exception as error:  # noqa: BLE001 - a template raises what it likes; the next question counts
            problem = RunnerError(f"the question cannot be answered: {_words_of(error)}")
            write({"id": number, "error": problem.to_json()})


def _words_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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


def _words(piece: str | Ending) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"delta": piece}
    usage = {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": piece.prompt_tokens + piece.completion_tokens,
    }
    return {"done": True, "finish_reason": piece.finish_reason, "usage": usage}
