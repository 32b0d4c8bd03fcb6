"""Rows -> chat template -> token ids, and which of them are trained.

Loss is taken on what the assistant says and on the token that ends its turn; nothing else. A
conversation is tokenised once, as the template renders it, so that training sees what serving sends.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from local_runner.models import tokenizers
from local_runner.templates import MARK, ChatTemplate, LostSystemError, Message, SystemTurns
from maas_client.errors import BaseModelError, DatasetError, Problem
from maas_client.spec.dataset import numbered_rows
from maas_client.spec.inputs import Lines, TokenCount
from maas_client.spec.task_rows import TEXT_COLUMNS
from maas_client.spec.tasks import trainable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Row = Mapping[str, Any]
Span = tuple[int, int]
"""First character, and the one after the last."""
Coded = tuple[list[int], list[Span]]
"""Token ids, and where in the text each stands."""
Note = Literal["cut answer", "open end", "deaf end", "system", "spelled"]
"""A peculiarity of a row; `TokenCount` counts each, and says what it means."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    """Whether the loss counts the prediction of this token; as long as `ids`."""
    full_length: int
    """Tokens before the row was cut."""
    line: int = 0
    """Its line in the file; 0 where it is in none."""
    notes: frozenset[Note] = frozenset()


@dataclass(frozen=True, slots=True)
class Drawn:
    """One row as text."""

    text: str
    spans: tuple[Span, ...]
    """What is trained, in order: an answer, and the token that ends it."""
    ends: tuple[str, ...]
    """The token at the end of each span; empty where the template writes none."""
    notes: frozenset[Note] = frozenset()


class ChatTokenizer:
    """A base model's own tokenizer and chat template. Light: no torch, no transformers.

    Args:
        folder: the model's.
        model: the catalogue's name of the model, where it is known: it says what the folder lacks.
        system_turns: what becomes of a system turn that the template has no place for.
    """

    def __init__(
        self, folder: Path, *, model: str = "", system_turns: SystemTurns = "fold"
    ) -> None:
        from tokenizers import Tokenizer

        own, folder = folder, tokenizers.whole(folder, model=model)
        try:
            self.raw: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        except Exception as error:  # the library raises bare Exception for a broken file
            raise BaseModelError(
                f"{folder}: no usable tokenizer: {error}", hint="Download it again."
            ) from error
        file = folder / "chat_template.jinja"
        source = file.read_text("utf-8") if file.exists() else self._settings.get("chat_template")
        if not isinstance(source, str):
            raise BaseModelError(
                f"{folder}: the tokenizer has no chat template",
                hint="Put the model's chat_template.jinja into the folder.",
            )
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
        self.added = frozenset(token.content for token in added.values())
        self._specials = tuple(token.content for token in added.values() if token.special)
        self._spelled = re.compile("|".join(map(re.escape, self._specials)) or r"(?!)")
        try:
            self.template = ChatTemplate(
                source, bos=self.special["bos_token"], eos=self.eos, added=self.added
            )
        except Exception as error:  # jinja's own errors, and what a broken source brings out of it
            raise BaseModelError(
                f"{folder}: the chat template is not Jinja: {error}", hint="Download it again."
            ) from error
        self._system_turns: SystemTurns = system_turns

    def render(self, messages: Sequence[Message], *, answer: bool = False) -> str:
        """The conversation as text; with `answer`, up to where the assistant begins to speak."""
        turns, _ = self.template.sayable(messages)
        return self.template.render(turns, answer=answer)

    def prompt(self, messages: Sequence[Message], *, tools: Any = None) -> list[int]:
        """Token ids that ask for the assistant's next turn."""
        turns, given = self.template.sayable(messages, tools)
        text = self.template.render(turns, answer=True, tools=given)
        return list(self.raw.encode(text, add_special_tokens=False).ids)

    def draw(self, row: Row) -> Drawn:
        """A checked row as text, and what of it is trained.

        Raises:
            Exception: the template refuses it, with whatever it likes to raise.
        """
        if "messages" in row:
            return self._chat(row["messages"], row.get("tools"))
        return self._completion(row)

    def _chat(self, messages: Sequence[Message], tools: Any) -> Drawn:
        turns, given = self.template.sayable(messages, tools, system_turns=self._system_turns)
        text = self.template.render(turns, tools=given)
        spans, ends = [], []
        for index, turn in enumerate(turns):
            if turn["role"] == "assistant" and turn.get("weight", 1) != 0:
                start, stop = self._turn(text, turns, index, given)
                end = next((word for word in self._specials if text.startswith(word, stop)), "")
                spans.append((start, stop + len(end)))
                ends.append(end)
        notes = self._end_notes(ends)
        if not self.template.keeps_system and any(turn["role"] == "system" for turn in messages):
            notes.add("system")
        if any(self._spelled.search(turn.get("content") or "") for turn in messages):
            notes.add("spelled")
        return Drawn(text, tuple(spans), tuple(ends), frozenset(notes))

    def _turn(self, text: str, turns: Sequence[Message], index: int, tools: Any) -> Span:
        """Where an assistant turn's words begin, and where the token that ends them does."""
        said = turns[index].get("content") or ""
        marked = [*turns]
        marked[index] = {"role": "assistant", "content": MARK}
        before, _, after = self.template.render(marked, tools=tools).partition(MARK)
        start, stop = len(before), len(text) - len(after)
        whole = text.startswith(before) and text.endswith(after) and start <= stop
        # Some templates trim what is said; and calls they write as they see fit.
        as_said = text[start:stop] in (said, said.strip()) or "tool_calls" in turns[index]
        if not whole or not as_said:
            raise ValueError(f"the chat template changes what turn {index + 1} says")
        return start, stop

    def _end_notes(self, ends: Sequence[str]) -> set[Note]:
        notes: set[Note] = set()
        if "" in ends:
            notes.add("open end")
        heard = {self.raw.token_to_id(word) for word in ends if word}
        if not heard <= self.stops:
            notes.add("deaf end")
        return notes

    def _completion(self, row: Row) -> Drawn:
        """A text_completion row: all of `text`, or only the second column, is trained."""
        columns = next(names for names in TEXT_COLUMNS if set(names) == set(row))
        asked = row[columns[0]] if len(columns) > 1 else ""
        text = asked + row[columns[-1]] + self.eos
        notes: set[Note] = {"spelled"} if self._spelled.search(text[: -len(self.eos)]) else set()
        return Drawn(text, ((len(asked), len(text)),), (self.eos,), frozenset(notes))

    def code(self, drawn: Sequence[Drawn]) -> list[Coded]:
        """Texts as token ids, each with its place in the text."""
        coded = self.raw.encode_batch([row.text for row in drawn], add_special_tokens=False)
        return [
            self._parted(row, code.ids, code.offsets)
            for row, code in zip(drawn, coded, strict=True)
        ]

    def _parted(self, row: Drawn, ids: list[int], places: list[Span]) -> Coded:
        """The tokens, none of them partly asked and partly answered.

        The model answers behind a prompt that ends with a token, so an answer begins with one. Special
        tokens are let be: Phi-3's take the white space behind them along, in serving, too.
        """
        cuts = []
        for first, _ in row.spans:
            at = bisect_left(places, first, key=itemgetter(0)) - 1
            across = at >= 0 and first < places[at][1]
            if across and self.raw.id_to_token(ids[at]) not in self.added:
                cuts.append(first)
        if not cuts:
            return ids, places
        ids, places = [], []
        for start, end in pairwise([0, *cuts, len(row.text)]):
            code = self.raw.encode(row.text[start:end], add_special_tokens=False)
            ids += code.ids
            places += [(first + start, last + start) for first, last in code.offsets]
        return ids, places

    def encode(
        self, rows: Sequence[Row], *, max_length: int, lines: Sequence[int] = ()
    ) -> list[Example]:
        """Checked rows as tokens, each cut to `max_length`.

        Raises:
            Unsayable: the template refuses a row.
        """
        drawn = []
        for place, row in enumerate(rows):
            try:
                drawn.append(self.draw(row))
            except Exception as error:  # a template raises what it likes
                raise UnsayableError(place, error) from error
        return [
            _example(row, *code, max_length, line)
            for row, code, line in zip(
                drawn, self.code(drawn), lines or [0] * len(drawn), strict=True
            )
        ]


class UnsayableError(ValueError):
    """The chat template cannot say a row."""

    def __init__(self, place: int, why: Exception) -> None:
        super().__init__(str(why))
        self.place = place
        """Which of the rows."""
        self.loses_system = isinstance(why, LostSystemError)


def _example(row: Drawn, ids: list[int], places: list[Span], max_length: int, line: int) -> Example:
    trained = trained_places(places, row.spans)
    notes = {*row.notes, *(("cut answer",) if any(trained[max_length:]) else ())}
    return Example(tuple(ids[:max_length]), trained[:max_length], len(ids), line, frozenset(notes))


def trained_places(offsets: Sequence[Span], spans: Sequence[Span]) -> tuple[bool, ...]:
    """Which tokens begin inside a span.

    Where a token ends does not matter: Phi-3's `<|end|>` takes the newline behind it along.
    """
    trained = [False] * len(offsets)
    for first, last in spans:
        # Tokens stand in the text's order: looking at each for each span was a third of the reading.
        begin, after = (bisect_left(offsets, place, key=itemgetter(0)) for place in (first, last))
        trained[begin:after] = [end > start for start, end in offsets[begin:after]]
    return tuple(trained)


def load_examples(
    tokenizer: ChatTokenizer, file: Path, *, max_length: int, task: str = "chat_completion"
) -> list[Example]:
    """Every row of a checked file as tokens.

    Raises:
        DatasetError: the template fails on rows, or leaves nothing of them to train; with their lines.
    """
    examples: list[Example] = []
    bad: list[Problem] = []
    for chunk in _chunks(trainable(numbered_rows(file), task), 256):
        for example in _encode_good(tokenizer, chunk, max_length, bad):
            if any(example.trained[1:]):
                examples.append(example)
            else:
                what = f"no token is trained within {max_length} of {example.full_length} tokens"
                hint = "raise max_seq_length, or shorten the row"
                bad.append(Problem(what, line=example.line, hint=hint, code="no_loss"))
    if bad:
        raise _bad_rows(file, sorted(bad, key=lambda problem: problem.line or 0))
    return examples


def _encode_good(
    tokenizer: ChatTokenizer, chunk: list[tuple[int, Row]], max_length: int, bad: list[Problem]
) -> list[Example]:
    """The rows that the template can say; why it cannot say the others is added to `bad`."""
    while chunk:
        lines, rows = zip(*chunk, strict=True)
        try:
            return tokenizer.encode(rows, max_length=max_length, lines=lines)
        except UnsayableError as error:
            what, hint = f"the chat template fails: {error}", ""
            if error.loses_system:
                what, hint = str(error), FOLD_HINT
            bad.append(Problem(what, line=lines[error.place], hint=hint, code="row"))
            del chunk[error.place]
    return []


FOLD_HINT = "`system_turns: fold` in hyperparameters puts its words before the user's; or remove it"
_NAMED_ROWS = 10


def _bad_rows(file: Path, bad: Sequence[Problem]) -> DatasetError:
    where = f"line {bad[0].line}" if len(bad) == 1 else f"{len(bad):,} rows"
    more = len(bad) - _NAMED_ROWS
    hint = f"{more:,} more rows are not listed." if more > 0 else ""
    return DatasetError(
        f"{file}: {where} cannot be trained", hint=hint, problems=tuple(bad[:_NAMED_ROWS])
    )


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
        cut_answers=_noted(rows, "cut answer"),
        open_ends=_noted(rows, "open end"),
        deaf_ends=_noted(rows, "deaf end"),
        system_rows=_noted(rows, "system"),
        spelled=_noted(rows, "spelled"),
    )


def _noted(rows: Iterable[Example], note: Note) -> Lines:
    return Lines.of(row.line for row in rows if note in row.notes)


def max_length(config: Mapping[str, Any], asked: int) -> int:
    """Tokens that a row may have: what was asked for, and never more than the model's context."""
    context = int(config["max_position_embeddings"])
    return context if asked <= 0 else min(asked, context)


def _text_of(token: Any) -> str:
    """A special token's text; some files write it as an object."""
    return str(token["content"]) if isinstance(token, dict) else str(token or "")
