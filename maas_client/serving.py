"""Asking a model: a deployed one at its endpoint, or weights on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from maas_client.errors import TargetError
from maas_client.targets.runner import Answers
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


class Chat(Protocol):
    """Something that answers."""

    def ask(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answer:
        """One answer, whole.

        Args:
            messages: a question, or the turns of a conversation.
            max_tokens: the longest answer, in tokens.
            temperature: 0 is greedy.
            seed: makes sampling repeatable.
        """

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The answer in pieces, as they are made."""

    def close(self) -> None:
        """Let go of the connection or process."""


class EndpointChat:
    """A deployed model.

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
        body = _body(messages, max_tokens=max_tokens, temperature=temperature, seed=seed)
        for chunk in self._transport.stream("/v1/chat/completions", body | {"stream": True}):
            for choice in chunk.get("choices", ()):
                if piece := choice.get("delta", {}).get("content"):
                    yield piece

    def close(self) -> None:
        self._transport.close()


class LocalChat:
    """Weights on this machine, in a child process.

    Args:
        base: the weights, as for `--base`.
        model: the catalogue's name of the base model.
        adapter: what a job has trained, or None for the base alone.
    """

    def __init__(self, base: str | None, *, model: str, adapter: Path | None = None) -> None:
        self._answers = Answers(base, model=model)
        self._adapter = adapter
        self.base = self._answers.base

    def ask(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answer:
        pieces = self.stream(messages, max_tokens=max_tokens, temperature=temperature, seed=seed)
        text = "".join(pieces)
        last = self._answers.last
        usage = last["usage"]
        return Answer(
            text=text,
            finish_reason=last["finish_reason"],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            model=self.base.label,
        )

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        yield from self._answers.ask(
            _turns(messages),
            adapter=self._adapter,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )

    def close(self) -> None:
        self._answers.close()


def _turns(messages: str | Sequence[Message]) -> list[Message]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


def _body(
    messages: str | Sequence[Message], *, max_tokens: int, temperature: float, seed: int | None
) -> dict[str, Any]:
    turns = _turns(messages)
    body: dict[str, Any] = {
        "messages": turns,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    return body if seed is None else body | {"seed": seed}
