"""Rows of the tasks that have columns: which they may be called, and what may stand in them.

The names are those of Azure's fine-tuning components and of its examples for them: CoLA, MRPC, SQuAD,
XSum, CNN/DailyMail, WMT and CoNLL as they are published.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maas_client.spec.json_place import JsonPath
from maas_client.spec.rows import Fault, RowCheck, kind, text_faults

Row = Mapping[str, Any]

TEXT_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("text", "ground_truth"),
    ("prompt", "ground_truth"),
    ("prompt", "completion"),
)
"""Columns of a text_completion row: all of `text` is trained, or only the second column."""

SENTENCE = ("sentence1", "sentence", "text")
SECOND = "sentence2"
LABEL = ("label_string", "label")
"""The first that a row has is read: a number beside its name is not."""
SUMMARIES = (
    ("document", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("text", "summary"),
)
TAGS = ("ner_tags_str", "ner_tags", "tags")
STRUCTURED = ("messages", "tools", "answers", "translation", "tokens", *TAGS)
"""Columns whose cell, in a file that has only text, is a list or an object."""

_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?\Z")
_TAG = re.compile(r"O|[BI]-\S+")


def pick(row: Row, names: Sequence[str]) -> str | None:
    """The first of the names that the row has."""
    return next((name for name in names if name in row), None)


def listed(value: Any) -> Any:
    """A list that may have been written as text, as JSON or as Python would write it; else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value


def label_text(value: Any) -> str:
    """A label as the model is to say it."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def is_tag(word: str) -> bool:
    """Whether it is a tag of the IOB scheme."""
    return _TAG.fullmatch(word) is not None


def languages(row: Row) -> tuple[str, str] | None:
    """Source and target language of a translation row: its first two columns, in their order."""
    pair = row.get("translation", row)
    if not isinstance(pair, Mapping):
        return None
    codes = [key for key in pair if _LANGUAGE.match(key)]
    return (codes[0], codes[1]) if len(codes) == 2 else None


def text_row(row: Any) -> Iterator[Fault]:
    """What is wrong with a text_completion row."""
    if not isinstance(row, dict):
        fix = 'write {"text": "…"}'
        yield Fault("not_an_object", f"the row is {kind(row)}, not an object", fix)
        return
    if not any(set(row) == set(known) for known in TEXT_COLUMNS):
        formats = "; ".join(" + ".join(known) for known in TEXT_COLUMNS)
        yield Fault(
            "columns", f"the row has the keys {', '.join(row) or '(none)'}", f"use {formats}"
        )
        return
    for key, value in row.items():
        yield from text_faults(value, (key,), key)


def classification_row(row: Any) -> Iterator[Fault]:
    """What is wrong with a text_classification row."""
    yield from _columns(row, (SENTENCE, LABEL))
    if not isinstance(row, dict):
        return
    for name in (pick(row, SENTENCE), SECOND if SECOND in row else None):
        if name is not None:
            yield from text_faults(row[name], (name,), name)
    name = pick(row, LABEL)
    if name is not None and not isinstance(row[name], bool | int):
        yield from _line_faults(row[name], (name,), name)


def answering_row(row: Any) -> Iterator[Fault]:
    """What is wrong with a question_answering row, in SQuAD's form."""
    yield from _columns(row, (("question",), ("context",), ("answers",)))
    if not isinstance(row, dict):
        return
    for name in ("question", "context"):
        if name in row:
            yield from text_faults(row[name], (name,), name)
    if "answers" in row:
        yield from _answers(listed(row["answers"]), row.get("context"))


def _answers(answers: Any, context: Any) -> Iterator[Fault]:
    form = 'write {"text": ["…"], "answer_start": [0]}'
    if not isinstance(answers, dict):
        yield Fault("answers", f"answers is {kind(answers)}, not an object", form, ("answers",))
        return
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list) or not texts:
        what = "an empty list: nothing to learn" if texts == [] else kind(texts)
        yield Fault("answers", f"answers.text is {what}", form, ("answers", "text"))
        return
    if starts is not None and (not isinstance(starts, list) or len(starts) != len(texts)):
        what = f"{len(starts)} places" if isinstance(starts, list) else kind(starts)
        fix = "give each text its place, or leave answer_start out"
        yield Fault(
            "answers",
            f"answers.answer_start is {what} for {len(texts)} texts",
            fix,
            ("answers", "answer_start"),
        )
        return
    for index, text in enumerate(texts):
        at: JsonPath = ("answers", "text", index)
        yield from text_faults(text, at, f"answer {index + 1}")
        if starts is not None and isinstance(text, str) and isinstance(context, str):
            yield from _place(text, starts[index], context, index)


def _place(text: str, start: Any, context: str, index: int) -> Iterator[Fault]:
    at: JsonPath = ("answers", "answer_start", index)
    if isinstance(start, bool) or not isinstance(start, int):
        fix = "write where the answer begins in the context, from 0"
        yield Fault("answer_start", f"answer_start is {kind(start)}, not a whole number", fix, at)
    elif not 0 <= start <= len(context) or not context.startswith(text, start):
        found = context.find(text)
        fix = f"it begins at {found}" if found >= 0 else "copy the answer from the context"
        said = f"answer_start {start} does not point at {text[:40]!r} in the context"
        yield Fault("answer_start", said, fix, at)


def summary_row(row: Any) -> Iterator[Fault]:
    """What is wrong with a text_summarization row."""
    if isinstance(row, dict) and (pair := summary_columns(row)) is not None:
        for name in pair:
            yield from text_faults(row[name], (name,), name)
        return
    yield from _columns(row, (("document", "article", "dialogue", "text"),))
    if isinstance(row, dict) and pick(row, ("document", "article", "dialogue", "text")):
        formats = "; ".join(" + ".join(known) for known in SUMMARIES)
        yield Fault("columns", "the row has no summary that goes with its text", f"use {formats}")


def summary_columns(row: Row) -> tuple[str, str] | None:
    """The text's column and the summary's."""
    return next((pair for pair in SUMMARIES if set(pair) <= set(row)), None)


def translation_row(row: Any) -> Iterator[Fault]:
    """What is wrong with a text_translation row."""
    form = 'write {"en": "…", "ro": "…"}, the source language first'
    row = {**row, "translation": listed(row["translation"])} if _nested(row) else row
    if not isinstance(row, dict):
        yield Fault("not_an_object", f"the row is {kind(row)}, not an object", form)
        return
    codes = languages(row)
    if codes is None:
        keys = ", ".join(map(str, row)) or "(none)"
        yield Fault("columns", f"the row has no two languages; its keys: {keys}", form)
        return
    pair = row.get("translation", row)
    inside: JsonPath = ("translation",) if "translation" in row else ()
    for code in codes:
        yield from text_faults(pair[code], (*inside, code), code)


def _nested(row: Any) -> bool:
    return isinstance(row, dict) and "translation" in row


def tagging_row(row: Any) -> Iterator[Fault]:
    """What is wrong with a token_classification row."""
    yield from _columns(row, (("tokens",), TAGS))
    if not isinstance(row, dict) or "tokens" not in row or (name := pick(row, TAGS)) is None:
        return
    tokens, tags = listed(row["tokens"]), listed(row[name])
    for column, value in (("tokens", tokens), (name, tags)):
        if not isinstance(value, list) or not value:
            what = "an empty list" if value == [] else kind(value)
            fix = 'write ["EU", "rejects"] and ["B-ORG", "O"]'
            yield Fault("not_a_list", f"{column} is {what}", fix, (column,))
            return
    if len(tokens) != len(tags):
        said = f"{len(tokens)} tokens have {len(tags)} tags"
        yield Fault("length", said, "give each token one tag", (name,))
    for index, token in enumerate(tokens):
        yield from _line_faults(token, ("tokens", index), f"token {index + 1}")
    for index, tag in enumerate(tags):
        if not isinstance(tag, str) or not is_tag(tag):
            fix = "a tag is O, or B- or I- and the name of the entity, as B-ORG"
            yield Fault("tag", f"tag {index + 1} is {tag!r}", fix, (name, index))


def _line_faults(value: Any, at: JsonPath, name: str) -> Iterator[Fault]:
    yield from text_faults(value, at, name)
    if isinstance(value, str) and len(value.splitlines()) > 1:
        yield Fault("two_lines", f"{name} holds a line break", "write it on one line", at)


def _columns(row: Any, wanted: Sequence[Sequence[str]]) -> Iterator[Fault]:
    """A fault for each column that is missing under all its names."""
    form = ", ".join(" or ".join(names) for names in wanted)
    if not isinstance(row, dict):
        fix = f"write an object with {form}"
        yield Fault("not_an_object", f"the row is {kind(row)}, not an object", fix)
        return
    for names in wanted:
        if pick(row, names) is None:
            near = _near(names, [key for key in row if isinstance(key, str)])
            fix = f"rename {near} to {names[0]}" if near else f"the columns are {form}"
            yield Fault("columns", f"the row has no {' or '.join(names)}", fix)


def _near(names: Sequence[str], keys: Sequence[str]) -> str | None:
    """A key that was probably meant to be one of the names."""
    low = {key.lower(): key for key in keys}
    for name in names:
        if found := difflib.get_close_matches(name, low, n=1, cutoff=0.85):
            return low[found[0]]
    return None


CHECKS: Mapping[str, RowCheck] = {
    "text_completion": text_row,
    "text_classification": classification_row,
    "question_answering": answering_row,
    "text_summarization": summary_row,
    "text_translation": translation_row,
    "token_classification": tagging_row,
}
