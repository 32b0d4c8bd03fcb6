"""Chat completions at a serverless endpoint, whole and streamed."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from local_runner.mock_server.chat import Piece
from local_runner.mock_server.credentials import same
from local_runner.mock_server.errors import ServiceError, not_found, openai_body, user_error
from local_runner.mock_server.registration import adapter_of
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route

_MOST_STOPS = 4
_ROLES = ("system", "user", "assistant", "tool", "developer")


def routes(twin: Twin) -> list[Route]:
    """The routes of this door; it looks at the key itself."""
    door = _Door(twin)
    return [
        Route("POST", "/serverless/{name}/v1/chat/completions", door.chat, "open", slow=True),
        Route("POST", "/serverless/{name}/chat/completions", door.chat, "open", slow=True),
        Route("GET", "/serverless/{name}/info", door.info, "open"),
        Route("GET", "/serverless/{name}/v1/models", door.models, "open"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def info(self, call: Call) -> Reply:
        endpoint = self._endpoint(call)
        return Reply(
            body={
                "model_name": endpoint["model"],
                "model_type": "chat-completion",
                "model_provider_name": "Microsoft",
            }
        )

    def models(self, call: Call) -> Reply:
        endpoint = self._endpoint(call)
        entry = {
            "id": endpoint["model"],
            "object": "model",
            "created": int(endpoint["at"]),
            "owned_by": "user",
        }
        return Reply(body={"object": "list", "data": [entry]})

    def chat(self, call: Call) -> Reply:
        try:
            endpoint = self._endpoint(call)
            question = _question(call.json())
            pieces = self._twin.speaker.answer(
                endpoint["base_model"], self._adapter(endpoint), question
            )
            frame = {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "created": int(time.time()),
                "model": endpoint["model"],
            }
            if question["stream"]:
                first = next(pieces)  # a refusal comes before the first word, as an error
                return Reply(
                    body=_stream(frame, first, pieces, usage=question["usage"]),
                    media_type="text/event-stream",
                )
            return Reply(body=_whole(frame, pieces))
        except ServiceError as error:
            return Reply(error.status, openai_body(error), error.headers)

    def _endpoint(self, call: Call) -> Body:
        endpoint = self._twin.store.get("endpoint", call.params["name"].lower())
        given = call.headers.get("api-key") or call.headers.get("authorization", "")
        key = re.sub(r"(?i)^bearer ", "", given).strip()
        # The same answer for an unknown endpoint and a wrong key: names are not given away.
        known = endpoint["keys"] if endpoint else ["", ""]
        good = [same(key, known[0]), same(key, known[1])]
        if endpoint is None or not any(good) or not key:
            raise ServiceError(
                401, "Unauthorized", "Invalid or missing key for this endpoint.", inner="401"
            )
        return endpoint

    def _adapter(self, endpoint: Body) -> Path | None:
        model = self._twin.store.get("model", endpoint["model_key"])
        if model is None:
            if ":" in endpoint["model"]:
                raise not_found("Model", endpoint["model"])
            return None  # a base model of the registry
        return adapter_of(self._twin, model)


def _question(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body, checked."""
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


def _whole(frame: dict[str, Any], pieces: Iterator[Piece]) -> dict[str, Any]:
    text, end = "", {}
    for piece in pieces:
        text += piece.get("delta", "")
        end = dict(piece)
    message = {"role": "assistant", "content": text, "tool_calls": None}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": end["finish_reason"],
        "logprobs": None,
    }
    return frame | {"object": "chat.completion", "choices": [choice], "usage": end["usage"]}


def _stream(
    frame: dict[str, Any], first: Piece, rest: Iterator[Piece], *, usage: bool
) -> Generator[bytes, None, None]:
    def event(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return _sse(frame | {"object": "chat.completion.chunk", "choices": [choice]})

    try:
        yield event({"role": "assistant", "content": ""})
        piece: Piece | None = first
        while piece is not None:
            if piece.get("done"):
                yield event({}, piece["finish_reason"])
                if usage:
                    last = {
                        "object": "chat.completion.chunk",
                        "choices": [],
                        "usage": piece["usage"],
                    }
                    yield _sse(frame | last)
            else:
                yield event({"content": piece["delta"]})
            piece = next(rest, None)
        yield b"data: [DONE]\n\n"
    except ServiceError as error:  # too late for a status: the reader is told in the stream
        yield _sse(openai_body(error))
    finally:
        rest.close()  # type: ignore[attr-defined]  # a generator; its end stops the model


def _sse(data: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
