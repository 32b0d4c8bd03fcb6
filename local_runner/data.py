"""Rows -> chat template -> token ids, and which of them are trained.

Loss is taken on what the assistant says and on the token that ends its turn; nothing else. A
conversation is tokenised once, as the template renders it, so that training sees what serving sends.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_runner.models import tokenizers
from maas_client.errors import BaseModelError, DatasetError, Problem
from maas_client.plan import TokenCount
from maas_client.spec.dataset import numbered_rows
from maas_client.spec.task_rows import TEXT_COLUMNS
from maas_client.spec.tasks import trainable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, Any]
Row = Mapping[str, Any]
Span = tuple[int, int]
"""First character, and the one after the last."""

_MARK = "\ue000\ue001\ue000"
"""Stands for a turn's words while their place is looked for; private characters, no letters."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    """Whether the loss counts the prediction of this token; as long as `ids`."""
    full_length: int
    """Tokens before the row was cut."""


class ChatTokenizer:
    """A base model's own tokenizer and chat template. Light: no torch, no transformers.

    Args:
        folder: the model's.
        model: the catalogue's name of the model, where it is known: it says what the folder lacks.
    """

    def __init__(self, folder: Path, *, model: str = "") -> None:
        from tokenizers import Tokenizer

        own, folder = folder, tokenizers.whole(folder, model=model)
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
        self.special = {
            "bos_token": _text_of(self._settings.get("bos_token")),
            "eos_token": self.eos,
        }
        self.stops = tokenizers.stop_ids(own, self.raw, model=model, eos=eos_id)
        added = self.raw.get_added_tokens_decoder()
        self._specials = tuple(token.content for token in added.values() if token.special)

    def render(self, messages: Sequence[Message], *, answer: bool = False) -> str:
        """The conversation as text; with `answer`, up to where the assistant begins to speak."""
        return str(
            self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=answer,
                **self.special,
            )
        )

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that ask for the assistant's next turn."""
        text = self.render(messages, answer=True)
        return list(self.raw.encode(text, add_special_tokens=False).ids)

    def chat(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The conversation as text, and the spans of it that are trained."""
        text = self.render(messages)
        spans = [
            self._turn(text, messages, index)
            for index, message in enumerate(messages)
            if message["role"] == "assistant" and message.get("weight", 1) != 0
        ]
        return text, spans

    def _turn(self, text: str, messages: Sequence[Message], index: int) -> Span:
        """Where an assistant turn's words begin, and where the token that ends them does."""
        marked = [*messages]
        marked[index] = {**messages[index], "content": _MARK}
        start = self.render(marked).find(_MARK)
        content = messages[index].get("content") or ""
        if start < 0 or not text.startswith(said := content, start):
            said = content.strip()  # some templates trim what is said
        if start < 0 or not text.startswith(said, start):
            raise ValueError(f"the chat template changes what turn {index + 1} says")
        stop = start + len(said)
        ending = next((word for word in self._specials if text.startswith(word, stop)), "")
        return start, stop + len(ending)

    def completion(self, row: Mapping[str, str]) -> tuple[str, list[Span]]:
        """A text_completion row as text: all of `text`, or only the second column, is trained."""
        columns = next(names for names in TEXT_COLUMNS if set(names) == set(row))
        asked = row[columns[0]] if len(columns) > 1 else ""
        text = asked + row[columns[-1]] + self.eos
        return text, [(len(asked), len(text))]

    def encode(self, rows: Sequence[Mapping[str, Any]], *, max_length: int) -> list[Example]:
        """Checked rows as tokens, each cut to `max_length`.

        Raises:
            ValueError: the template refuses a row; the argument is the row's place and the reason.
        """
        drawn = []
        for place, row in enumerate(rows):
            try:
                drawn.append(
                    self.chat(row["messages"]) if "messages" in row else self.completion(row)
                )
            except Exception as error:  # a template raises what it likes
                raise ValueError(place, str(error)) from error
        coded = self.raw.encode_batch([text for text, _ in drawn], add_special_tokens=False)
        return [
            Example(
                tuple(code.ids[:max_length]), _trained(code.offsets[:max_length], spans), len(code)
            )
            for code, (_, spans) in zip(coded, drawn, strict=True)
        ]


def _trained(offsets: Sequence[Span], spans: Sequence[Span]) -> tuple[bool, ...]:
    """Which tokens begin inside a span.

    Where a token ends does not matter: Phi-3's `<|end|>` takes the newline behind it along.
    """
    return tuple(
        end > start and any(first <= start < last for first, last in spans)
        for start, end in offsets
    )


def load_examples(
    tokenizer: ChatTokenizer, file: Path, *, max_length: int, task: str = "chat_completion"
) -> list[Example]:
    """Every row of a checked file as tokens.

    Raises:
        DatasetError: the template fails on a row, or leaves nothing of it to train; with its line.
    """
    examples: list[Example] = []
    for chunk in _chunks(trainable(numbered_rows(file), task), 256):
        lines, rows = zip(*chunk, strict=True)
        try:
            coded = tokenizer.encode(rows, max_length=max_length)
        except ValueError as error:
            place, reason = error.args
            raise _bad_row(file, lines[place], f"the chat template fails: {reason}") from error
        for line, example in zip(lines, coded, strict=True):
            if not any(example.trained[1:]):
                what = f"no token is trained within {max_length} of {example.full_length} tokens"
                raise _bad_row(file, line, what, "raise max_seq_length, or shorten the row")
        examples += coded
    return examples


def _bad_row(file: Path, line: int, what: str, hint: str = "") -> DatasetError:
    problem = Problem(what, line=line, hint=hint, code="row")
    return DatasetError(f"{file}: line {line} cannot be trained", problems=(problem,))


def _chunks(rows: Iterator[tuple[int, Row]], size: int) -> Iterator[list[tuple[int, Row]]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def count(examples: Iterable[Example], *, counted_by: str) -> TokenCount:
    """Totals of a dataset."""
    rows = list(examples)
    return TokenCount(
        total=sum(len(row.ids) for row in rows),
        trained=sum(sum(row.trained[1:]) for row in rows),
        longest=max(row.full_length for row in rows),
        truncated_rows=sum(row.full_length > len(row.ids) for row in rows),
        counted_by=counted_by,
        longest_kept=max(len(row.ids) for row in rows),
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
