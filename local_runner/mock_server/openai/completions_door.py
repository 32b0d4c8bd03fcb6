"""Chat completions: whole and streamed, with one answer or several; by deployment or by the model's name."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from local_runner.mock_server.chat import Piece
from local_runner.mock_server.doors.questions import checked, spoken
from local_runner.mock_server.errors import ServiceError, openai_body
from local_runner.mock_server.openai import accounts, models
from local_runner.mock_server.openai.access import BASES, invalid, is_azure, text, versioned
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Handler, Reply, Route

_PATH = "/chat/completions"
_MOST_ANSWERS = 128
_UNSERVED = ("tools", "functions", "tool_choice", "function_call", "logprobs", "top_logprobs",
             "logit_bias", "audio", "prediction", "web_search_options")  # fmt: skip
"""What would change the answer, and the engine has not: refused, where it asks for anything."""
_SOFT = ("frequency_penalty", "presence_penalty")
"""The same, where it is not 0."""
_QUESTION = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
        "max_tokens": {"type": ["integer", "null"]},
        "n": {"type": ["integer", "null"]},
        "stream": {"type": "boolean"},
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)

    def chat(path: str, handler: Handler, call: str) -> Route:
        return Route("POST", path, handler, "api-key", slow=True, call=call, body=_QUESTION)

    whole, bare = "openai: chat.completions.create", "azure-ai-inference: complete"
    legacy = "AzureOpenAI: chat.completions.create"
    info = "azure-ai-inference: get_model_info"
    return [
        *(chat(base.path + _PATH, door.chat, whole) for base in BASES if not base.versioned),
        chat(f"/openai/deployments/{{deployment}}{_PATH}", versioned(door.chat), legacy),
        chat(f"/models{_PATH}", versioned(door.chat), bare),
        Route("GET", "/models/info", versioned(door.info), "api-key", call=info),
    ]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question, the model that is asked, and how its answer is to look."""

    question: dict[str, Any]
    served: models.Served
    name: str
    count: int

    def questions(self) -> list[dict[str, Any]]:
        """One for each answer: several of one seed would all be the same."""
        seed = self.question["seed"]
        seeds = [None if seed is None else (seed + place) % 2**63 for place in range(self.count)]
        return [self.question | {"seed": each} for each in seeds]

    def frame(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": None,
        }


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def chat(self, call: Call) -> Reply:
        asked = self._read(call)
        served, questions = asked.served, asked.questions()
        answers = self._twin.speaker.answers(served.base, served.adapter, questions, call.gone)
        if not asked.question["stream"]:
            return Reply(body=_whole(asked.frame(), spoken(answers)))
        pieces = _chunks(asked, answers)
        first = next(pieces)  # a refusal comes before the first word, as an error
        return Reply(body=_told(first, pieces), media_type="text/event-stream")

    def info(self, call: Call) -> Reply:
        """The model of the account's first deployment, for there is one account and not one model."""
        found = self._twin.store.list(accounts.KIND)
        name = found[-1].body["model"] if found else models.listed(self._twin)[0]["id"]
        return Reply(
            body={
                "model_name": name,
                "model_type": "chat-completion",
                "model_provider_name": "Microsoft",
            }
        )

    def _read(self, call: Call) -> _Asked:
        given = call.json()
        name = call.params.get("deployment") or text(given, "model")
        find = accounts.deployed if is_azure(call) else models.find
        served = find(self._twin, name)
        _refuse(given)
        count = given.get("n")
        count = 1 if count is None else count
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_ANSWERS:
            raise invalid(f"n must be a whole number from 1 to {_MOST_ANSWERS}.", param="n")
        return _Asked(_question(given), served, served.name, count)


def _refuse(given: Mapping[str, Any]) -> None:
    for key in _UNSERVED:
        if given.get(key):
            raise invalid(
                f"Unsupported parameter: '{key}' is not supported with this model.",
                param=key,
                code="unsupported_parameter",
            )
    for key in _SOFT:
        if given.get(key):
            raise invalid(
                f"Unsupported value: '{key}' must be 0 with this model.",
                param=key,
                code="unsupported_value",
            )
    form = given.get("response_format")
    if form and (not isinstance(form, dict) or form.get("type") != "text"):
        raise invalid(
            "Unsupported value: 'response_format.type' must be text with this model.",
            param="response_format",
            code="unsupported_value",
        )
    if given.get("stream_options") and given.get("stream") is not True:
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    if None not in (given.get("max_tokens"), given.get("max_completion_tokens")):
        raise invalid(
            "Give max_tokens or max_completion_tokens, not both.",
            param="max_tokens",
            code="mutually_exclusive_parameters",
        )


def _question(given: dict[str, Any]) -> dict[str, Any]:
    """The question, its refusals with the name of what was wrong."""
    try:
        return checked({key: value for key, value in given.items() if key != "n"})
    except ServiceError as error:
        word = error.message.split()[0].partition("[")[0].partition(".")[0]
        param = "max_completion_tokens" if word not in given and word == "max_tokens" else word
        raise invalid(error.message, param=param, code=error.inner) from error


def _whole(frame: dict[str, Any], said: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    choices = [
        {
            "index": place,
            "message": {"role": "assistant", "content": words, "refusal": None},
            "finish_reason": end["finish_reason"],
            "logprobs": None,
        }
        for place, (words, end) in enumerate(said)
    ]
    usages = [end["usage"] for _, end in said]
    return frame | {"object": "chat.completion", "choices": choices, "usage": _usage(usages)}


def _chunks(asked: _Asked, answers: Iterator[tuple[int, Piece]]) -> Generator[bytes, None, None]:
    """The chunks as they are made; those of several answers come as they come."""
    frame = asked.frame() | {"object": "chat.completion.chunk"}
    # A client that asked for the usage gets it as null in all chunks but the last.
    told = {"usage": None} if asked.question["usage"] else {}

    def chunk(place: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": place, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _sse(frame | {"choices": [choice]} | told)

    begun: set[int] = set()
    usages = []
    try:
        for place, piece in answers:
            if place not in begun:
                begun.add(place)
                yield chunk(place, {"role": "assistant", "content": ""})
            if piece.get("done"):
                usages.append(piece["usage"])
                yield chunk(place, {}, piece["finish_reason"])
            else:
                yield chunk(place, {"content": piece["delta"]})
    finally:
        answers.close()  # type: ignore[attr-defined]  # a generator; its end stops the model
    if asked.question["usage"]:
        yield _sse(frame | {"choices": [], "usage": _usage(usages)})


def _told(first: bytes, rest: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    try:
        yield first
        yield from rest
        yield b"data: [DONE]\n\n"
    except ServiceError as error:  # too late for a status: the reader is told in the stream
        yield _sse(openai_body(error))
    finally:
        rest.close()


def _usage(usages: list[dict[str, int]]) -> dict[str, int]:
    """Of several answers: the question counts once."""
    asked = usages[0]["prompt_tokens"]
    made = sum(usage["completion_tokens"] for usage in usages)
    return {
        "prompt_tokens": asked,
        "completion_tokens": made,
        "total_tokens": asked + made,
    }


def _sse(data: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
