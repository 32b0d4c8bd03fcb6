"""From tokens to what is said: pieces of text, stop words, and how it ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HALF = "\ufffd"
"""What half a character decodes to."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended."""

    finish_reason: str
    """`stop`, or `length` where max_tokens or the context cut it."""
    prompt_tokens: int
    completion_tokens: int


class Speech:
    """One answer as it is made.

    Args:
        tokenizer: the base's.
        ends: tokens that end a turn.
        stop: words that do; they are not said.
        prompt_tokens: how long the question was.
        limit: how many tokens the answer may have.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        ends: Collection[int],
        stop: Sequence[str],
        prompt_tokens: int,
        limit: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._ends, self._stop, self._limit = ends, stop, limit
        self._prompt_tokens = prompt_tokens
        self._made: list[int] = []
        self._text, self._sent = "", 0

    def hear(self, token: int) -> list[str | Ending]:
        """What can be said now that the token is known; at last, how it ended."""
        self._made.append(token)
        if token in self._ends:
            return self._end("stop")
        self._text = self._tokenizer.decode(self._made, skip_special_tokens=True)
        found = [at for word in self._stop if (at := self._text.find(word)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            return self._end("stop")
        if len(self._made) >= self._limit:
            return self._end("length")
        # What may turn out to be a stop word, or the other half of a character, waits.
        if self._text.endswith(_HALF) or _may_become(self._text, self._stop):
            return []
        return self._rest()

    def _end(self, reason: str) -> list[str | Ending]:
        return [*self._rest(), Ending(reason, self._prompt_tokens, len(self._made))]

    def _rest(self) -> list[str | Ending]:
        piece, self._sent = self._text[self._sent :], max(self._sent, len(self._text))
        return [piece] if piece else []


def _may_become(text: str, stops: Sequence[str]) -> bool:
    """Whether the text ends with the beginning of a stop word."""
    return any(text.endswith(word[:n]) for word in stops for n in range(1, len(word)))
