"""Chat completions at a serverless endpoint, whole and streamed."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from local_runner.mock_server.chat import Piece, one_answer
from local_runner.mock_server.credentials import same
from local_runner.mock_server.doors import served
from local_runner.mock_server.doors.questions import checked, spoken
from local_runner.mock_server.errors import ServiceError, openai_body
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route

_QUESTION = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
        "max_tokens": {"type": "integer"},
        "stream": {"type": "boolean"},
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door; it looks at the key itself."""
    door = _Door(twin)
    one, whole = "/serverless/{name}", "openai: chat.completions.create"
    bare, info = "azure-ai-inference: complete", "azure-ai-inference: get_model_info"

    def chat(path: str, call: str) -> Route:
        return Route("POST", one + path, door.chat, "open", slow=True, call=call, body=_QUESTION)

    return [
        chat("/v1/chat/completions", whole),
        chat("/chat/completions", bare),
        Route("GET", f"{one}/info", door.info, "open", call=info),
        Route("GET", f"{one}/v1/models", door.models, "open", call="openai: models.list"),
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
            question = checked(call.json())
            asked = (endpoint["base_model"], served.adapter(self._twin, endpoint))
            frame = {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "created": int(time.time()),
                "model": endpoint["model"],
            }
            if question["stream"]:
                pieces = one_answer(self._twin.speaker, *asked, question, call.gone)
                first = next(pieces)  # a refusal comes before the first word, as an error
                return Reply(
                    body=_stream(frame, first, pieces, usage=question["usage"]),
                    media_type="text/event-stream",
                )
            (said,) = spoken(self._twin.speaker.answers(*asked, [question], call.gone))
            return Reply(body=_whole(frame, said))
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


def _whole(frame: dict[str, Any], said: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    text, end = said
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
