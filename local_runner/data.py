"""Rows -> chat template -> token ids, and which of them are trained.

Loss is taken on what the assistant says and on the token that ends its turn; nothing else. A
conversation is tokenised once, as the template renders it, so that training sees what serving sends.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maas_client.errors import BaseModelError, DatasetError
from maas_client.plan import TokenCount
from maas_client.spec.dataset import read_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    """Whether the loss counts the prediction of this token; as long as `ids`."""
    full_length: int
    """Tokens before the row was cut."""


class ChatTokenizer:
    """A base model's own tokenizer and chat template. Light: no torch, no transformers."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self.raw: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        except Exception as error:  # the library raises bare Exception for a broken file
            raise BaseModelError(f"{folder}: no usable tokenizer: {error}") from error
        file = folder / "chat_template.jinja"
        source = file.read_text("utf-8") if file.exists() else self._settings.get("chat_template")
        if not isinstance(source, str):
            raise BaseModelError(f"{folder}: the tokenizer has no chat template")
        self._template = _compile(source)
        self.eos = _text_of(self._settings.get("eos_token"))
        eos_id = self.raw.token_to_id(self.eos)
        if eos_id is None:
            raise BaseModelError(f"{folder}: the tokenizer has no end-of-text token")
        self.eos_id: int = eos_id
        added = self.raw.get_added_tokens_decoder()
        self._specials = tuple(token.content for token in added.values() if token.special)

    def render(self, messages: Sequence[Message], *, answer: bool = False) -> str:
        """The conversation as text; with `answer`, up to where the assistant begins to speak."""
        return str(
            self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=answer,
                bos_token=_text_of(self._settings.get("bos_token")),
                eos_token=self.eos,
            )
        )

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that ask for the assistant's next turn."""
        text = self.render(messages, answer=True)
        return list(self.raw.encode(text, add_special_tokens=False).ids)

    def chat(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the spans of it that are trained."""
        text = self.render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or message.get("weight", 1) == 0:
                continue
            spans.append(self._turn(text, messages[:index], message))
        return text, spans

    def _turn(self, text: str, before: Sequence[Message], message: Message) -> tuple[int, int]:
        """Where an assistant turn's words begin, and where the token that ends them does."""
        lead = self.render(before, answer=True)
        content = message.get("content") or ""
        start = len(lead)
        if not text.startswith(lead):
            raise ValueError("the template renders a turn differently once another follows it")
        for said in (content, content.strip()):
            if text.startswith(said, start):
                stop = start + len(said)
                break
        else:
            raise ValueError("the template changes what the assistant says")
        ending = next((word for word in self._specials if text.startswith(word, stop)), "")
        return start, stop + len(ending)

    def text(self, row: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
        """A text_completion row as text: all of `text`, or only the second column, is trained."""
        columns = list(row.values())
        if "text" in row and len(row) == 1:
            text = columns[0] + self.eos
            return text, [(0, len(text))]
        first = row.get("prompt") or row["text"]
        second = row.get("completion") or row["ground_truth"]
        text = first + second + self.eos
        return text, [(len(first), len(text))]

    def encode(self, row: Mapping[str, Any], *, task: str, max_length: int) -> Example:
        """One checked row as tokens, cut to `max_length`."""
        text, spans = self.chat(row["messages"]) if task == "chat_completion" else self.text(row)
        coded = self.raw.encode(text, add_special_tokens=False)
        trained = tuple(
            end > start and any(a <= start and end <= b for a, b in spans)
            for start, end in coded.offsets
        )
        return Example(tuple(coded.ids[:max_length]), trained[:max_length], len(coded.ids))


def load_examples(
    tokenizer: ChatTokenizer, file: Path, *, task: str, max_length: int
) -> list[Example]:
    """Every row of a checked file as tokens.

    Raises:
        DatasetError: the template fails on a row, or leaves nothing of it to train; with its number.
    """
    examples = []
    for number, row in enumerate(read_rows(file), start=1):
        try:
            example = tokenizer.encode(row, task=task, max_length=max_length)
        except Exception as error:  # a template raises what it likes
            raise DatasetError(f"{file}: row {number}: the chat template fails: {error}") from error
        if not any(example.trained[1:]):
            raise DatasetError(
                f"{file}: row {number}: no token is trained within {max_length} tokens",
                hint="Raise max_seq_length, or shorten the row.",
            )
        examples.append(example)
    return examples


def count(examples: Iterable[Example], *, counted_by: str) -> TokenCount:
    """Totals of a dataset."""
    rows = list(examples)
    return TokenCount(
        total=sum(len(row.ids) for row in rows),
        trained=sum(sum(row.trained[1:]) for row in rows),
        longest=max(row.full_length for row in rows),
        truncated_rows=sum(row.full_length > len(row.ids) for row in rows),
        counted_by=counted_by,
    )


def max_length(config: Mapping[str, Any], asked: int) -> int:
    """Tokens that a row may have: what was asked for, and never more than the model's context."""
    context = int(config["max_position_embeddings"])
    return context if asked <= 0 else min(asked, context)


def _compile(source: str) -> Any:
    """A chat template in the sandbox and with the helpers that transformers gives it."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(value: object, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    # The rendered text goes to a tokenizer, not to a browser: escaping would change it.
    box = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
    )
    box.filters["tojson"] = to_json
    box.globals["raise_exception"] = refuse
    box.globals["strftime_now"] = lambda form: dt.datetime.now(tz=dt.UTC).strftime(form)
    return box.from_string(source)


def _text_of(token: Any) -> str:
    """A special token's text; some files write it as an object."""
    return str(token["content"]) if isinstance(token, dict) else str(token or "")
