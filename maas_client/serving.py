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


class Line(Protocol):
    """Whoever answers. A body is what a chat-completions endpoint takes."""

    @property
    def about(self) -> str:
        """Who answers, in words; a stand-in says that it is one."""

    def whole(self, body: Mapping[str, Any]) -> Answer:
        """One answer."""

    def pieces(self, body: Mapping[str, Any]) -> Iterator[str]:
        """The same as it is made."""

    def close(self) -> None:
        """Let go of the connection or process."""


class Chat:
    """A model to talk to, wherever it is. Made by `flow.open_chat` and `flow.open_local_chat`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    @property
    def about(self) -> str:
        """Who answers, in words for people; a stand-in says that it is one."""
        return self._line.about

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
        return self._line.whole(_body(messages, max_tokens, temperature, seed))

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The answer in pieces, as they are made; the arguments are those of `ask`."""
        return self._line.pieces(_body(messages, max_tokens, temperature, seed))

    def close(self) -> None:
        self._line.close()


class EndpointLine:
    """A deployed model.

    Args:
        scoring_uri: the endpoint's address; `/v1/chat/completions` is appended.
        key: the endpoint's key. Never logged.
        ca: PEM file of the authority that signed the endpoint's certificate.
        headers: how the key is shown, where that is not as a bearer token.
        model: which model is asked, where the address serves several.
    """

    def __init__(
        self,
        scoring_uri: str,
        key: str,
        *,
        ca: str | None = None,
        headers: Mapping[str, str] | None = None,
        model: str | None = None,
    ) -> None:
        self.about = f"answers: {model or 'the endpoint'} at {scoring_uri}"
        shown = headers or {"Authorization": f"Bearer {key}"}
        self._transport = Transport(scoring_uri.rstrip("/"), headers=shown, ca=ca)
        self._model = {} if model is None else {"model": model}

    def whole(self, body: Mapping[str, Any]) -> Answer:
        raw = self._transport.post("/v1/chat/completions", {**self._model, **body})
        try:
            choice = raw["choices"][0]
            return _answer(
                choice["message"]["content"],
                choice["finish_reason"],
                raw["usage"],
                raw.get("model", ""),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise TargetError(f"the endpoint's answer lacks {error}") from error

    def pieces(self, body: Mapping[str, Any]) -> Iterator[str]:
        asked = {**self._model, **body, "stream": True}
        for chunk in self._transport.stream("/v1/chat/completions", asked):
            for choice in chunk.get("choices", ()):
                if piece := choice.get("delta", {}).get("content"):
                    yield piece

    def close(self) -> None:
        self._transport.close()


class LocalLine:
    """Weights on this machine, in a child process.

    Args:
        base: the weights, as for `--base`.
        model: the catalogue's name of the base model.
        adapter: what a job has trained, or None for the base alone.
        trained_on: another base that the adapter names; empty where it names this one.
    """

    def __init__(
        self, base: str | None, *, model: str, adapter: Path | None = None, trained_on: str = ""
    ) -> None:
        self._answers = Answers(base, model=model)
        self._adapter = adapter
        self._trained_on = trained_on

    @property
    def about(self) -> str:
        label = self._answers.base.label
        words = [f"answers: {f'the adapter {self._adapter} on ' if self._adapter else ''}{label}"]
        if self._trained_on:
            words.append(f"warning: the adapter says that it was trained on {self._trained_on}")
        if self._answers.folds_system:
            words.append("its chat template has no system turn: --system goes before the question")
        return "\n".join(words)

    def whole(self, body: Mapping[str, Any]) -> Answer:
        text = "".join(self.pieces(body))
        last = self._answers.last
        return _answer(text, last["finish_reason"], last["usage"], self._answers.base.label)

    def pieces(self, body: Mapping[str, Any]) -> Iterator[str]:
        return self._answers.ask(body, adapter=self._adapter)

    def close(self) -> None:
        self._answers.close()


def _answer(text: str, reason: str, usage: Mapping[str, int], model: str) -> Answer:
    return Answer(text, reason, usage["prompt_tokens"], usage["completion_tokens"], model)


def _body(
    messages: str | Sequence[Message], max_tokens: int, temperature: float, seed: int | None
) -> dict[str, Any]:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    body: dict[str, Any] = {
        "messages": turns,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    return body if seed is None else {**body, "seed": seed}
