"""Asking a deployed model: chat completions on an endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maas_client.errors import TargetError
from maas_client.transport import Transport

Message = Mapping[str, str]
"""`{"role": …, "content": …}`"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said."""

    text: str
    finish_reason: str
    """`stop`, or `length` where max_tokens cut it."""
    prompt_tokens: int
    completion_tokens: int
    model: str = ""


class Chat:
    """A chat endpoint.

    Args:
        scoring_uri: the endpoint's address; `/v1/chat/completions` is appended.
        key: the endpoint's key. Never logged.
        ca: PEM file of the authority that signed the endpoint's certificate.
    """

    def __init__(self, scoring_uri: str, key: str, *, ca: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._transport = Transport(scoring_uri.rstrip("/"), headers=headers, ca=ca)

    def ask(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answer:
        """One answer, whole."""
        body = _body(messages, max_tokens=max_tokens, temperature=temperature, seed=seed)
        raw = self._transport.post("/v1/chat/completions", body)
        try:
            choice, usage = raw["choices"][0], raw["usage"]
            return Answer(
                text=choice["message"]["content"],
                finish_reason=choice["finish_reason"],
                prompt_tokens=usage["prompt_tokens"],
                completion_tokens=usage["completion_tokens"],
                model=raw.get("model", ""),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise TargetError(f"the endpoint's answer lacks {error}") from error

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The answer in pieces, as they are made."""
        body = _body(messages, max_tokens=max_tokens, temperature=temperature, seed=seed)
        for chunk in self._transport.stream("/v1/chat/completions", body | {"stream": True}):
            for choice in chunk.get("choices", ()):
                if piece := choice.get("delta", {}).get("content"):
                    yield piece

    def close(self) -> None:
        self._transport.close()


def _body(
    messages: str | Sequence[Message], *, max_tokens: int, temperature: float, seed: int | None
) -> dict[str, Any]:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    body: dict[str, Any] = {
        "messages": turns,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    return body if seed is None else body | {"seed": seed}
