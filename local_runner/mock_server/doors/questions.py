"""Questions to a model: read from what the endpoints' clients send, and checked; and the answer's text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from local_runner.mock_server.chat import Piece
from local_runner.mock_server.errors import user_error

_MOST_STOPS = 4
_ROLES = ("system", "user", "assistant", "tool", "developer")
_PARAMETERS = {"max_new_tokens": "max_tokens", "max_tokens": "max_tokens", "seed": "seed",
               "temperature": "temperature", "top_p": "top_p", "stop": "stop"}  # fmt: skip
"""An MLflow model's parameters that change an answer here, and OpenAI's words for them."""


def checked(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body in OpenAI's words as the question that a speaker takes.

    Raises:
        ServiceError: it is none.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise user_error(
            "messages must be a list with at least one turn.", inner="invalid_messages"
        )
    turns = []
    for place, turn in enumerate(messages):
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            raise user_error(f"messages[{place}] has no valid role.", inner="invalid_messages")
        turns.append({"role": turn["role"], "content": _text(turn.get("content"), place)})
    given = {key: value for key, value in body.items() if value is not None}
    if given.get("n", 1) != 1:
        raise user_error("n must be 1: the endpoint gives one answer.", inner="invalid_value")
    limit = given.get("max_completion_tokens", given.get("max_tokens", 256))
    options = given.get("stream_options")
    seed = given.get("seed")
    return {
        "messages": turns,
        "max_tokens": int(_number("max_tokens", limit, 1, 131_072)),
        "temperature": _number("temperature", given.get("temperature", 1.0), 0, 2),
        "top_p": _number("top_p", given.get("top_p", 1.0), 0, 1),
        "seed": None if seed is None else int(_number("seed", seed, -(2**63), 2**63 - 1)),
        "stop": _stop(given.get("stop")),
        "stream": given.get("stream") is True,
        "usage": isinstance(options, dict) and options.get("include_usage") is True,
    }


def _stop(value: Any) -> list[str]:
    words = [value] if isinstance(value, str) else value or []
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise user_error("stop must be text, or a list of texts.", inner="invalid_value")
    if len(words) > _MOST_STOPS:
        raise user_error(f"stop has at most {_MOST_STOPS} texts.", inner="invalid_value")
    return words


def _text(content: Any, place: int) -> str:
    """A turn's text; parts of text are joined, as clients send them."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(p, dict) and p.get("type") == "text" for p in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    raise user_error(f"messages[{place}].content must be text.", inner="invalid_messages")


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise user_error(f"{name} must be a number from {low} to {high}.", inner="invalid_value")
    return value


def scored(body: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """An MLflow model's body as questions, and whether it was a list of them.

    `input_data` is a conversation, a text, a list of either, a table that holds them, or an object
    with `input_string` and `parameters`. `params` beside it are parameters too.

    Raises:
        ServiceError: it is none of these.
    """
    if "input_data" not in body:
        raise user_error("The body has no input_data.", inner="invalid_input")
    data, parameters = body["input_data"], dict(_object(body.get("params")))
    if isinstance(data, dict):
        parameters |= _object(data.get("parameters"))
        data = _column(data)
    several = not _is_conversation(data) and isinstance(data, list)
    conversations = data if several else [data]
    if not conversations:
        raise user_error("input_data is empty.", inner="invalid_input")
    words = {_PARAMETERS[key]: value for key, value in parameters.items() if key in _PARAMETERS}
    if parameters.get("do_sample") is False:
        words["temperature"] = 0
    return [checked({**words, "messages": _turns(talk)}) for talk in conversations], several


def spoken(pieces: Iterator[tuple[int, Piece]]) -> list[tuple[str, dict[str, Any]]]:
    """The whole answers, by place, each with its last piece, which says how it ended.

    Raises:
        ServiceError: they were not made, or nobody waits for them any more.
    """
    words: dict[int, list[str]] = {}
    ends: dict[int, dict[str, Any]] = {}
    for place, piece in pieces:
        if piece.get("done"):
            ends[place] = dict(piece)
        else:
            words.setdefault(place, []).append(piece["delta"])
    return [("".join(words.get(place, ())), end) for place, end in sorted(ends.items())]


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_conversation(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(turn, dict) for turn in data)


def _turns(talk: Any) -> Any:
    return [{"role": "user", "content": talk}] if isinstance(talk, str) else talk


def _column(data: Mapping[str, Any]) -> Any:
    """What `input_data` asks: its `input_string`, or that column of a table."""
    if "input_string" in data:
        return data["input_string"]
    columns, rows = data.get("columns"), data.get("data")
    if not isinstance(columns, list) or not isinstance(rows, list) or not columns:
        raise user_error("input_data has no input_string.", inner="invalid_input")
    place = columns.index("input_string") if "input_string" in columns else 0
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise user_error("input_data.data are not rows of its columns.", inner="invalid_input")
    return [row[place] for row in rows]
