"""How a task's row becomes a question and an answer: an instruction for a model that writes.

A chat_completion row is a conversation already, and a text_completion row is text; the other tasks are
put to the model as one turn of the user, and its answer is what is trained. The instruction is the same
for every row and file: what the labels are is learned, not told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from maas_client.errors import DatasetError
from maas_client.spec import chat_rows, task_rows
from maas_client.spec.rows import RowCheck
from maas_client.spec.task_rows import Row, label_text, languages, listed, pick, summary_columns

_LANGUAGES: Mapping[str, str] = {
    "ar": "Arabic",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A row as the model meets it."""

    question: str
    """The user's turn."""
    answer: str
    """What the assistant is trained to say."""
    accepted: tuple[str, ...]
    """Every answer that counts as right; the first is the trained one."""
    read: frozenset[str]
    """The columns that went into it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its rows, and how they are asked."""

    name: str
    faults: RowCheck
    ask: Callable[[Row], Asked] | None = None
    """None where a row is already what is trained."""


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        DatasetError: its rows are not text.
    """
    if name not in TASKS:
        raise DatasetError(
            f"rows for task {name} cannot be checked",
            hint=f"Tasks whose rows are known: {', '.join(TASKS)}.",
        )
    return TASKS[name]


def conversation(task: Task, row: Row) -> Row:
    """A checked row as it is trained: a conversation, or text that stays as it is."""
    if task.ask is None:
        return row
    asked = task.ask(row)
    turns = {"user": asked.question, "assistant": asked.answer}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


def trainable(rows: Iterator[tuple[int, Row]], name: str) -> Iterator[tuple[int, Row]]:
    """Numbered rows, each as it is trained."""
    task = find_task(name)
    return ((line, conversation(task, row)) for line, row in rows)


def _classify(row: Row) -> Asked:
    text, label = pick(row, task_rows.SENTENCE), pick(row, task_rows.LABEL)
    assert text is not None  # noqa: S101 - the row was checked
    assert label is not None  # noqa: S101 - the row was checked
    read = {text, label}
    question = f"Classify the text. Answer with its label only.\n\n{row[text].strip()}"
    if task_rows.SECOND in row:
        read.add(task_rows.SECOND)
        question = (
            "Classify the two sentences. Answer with their label only.\n\n"
            f"First: {row[text].strip()}\nSecond: {row[task_rows.SECOND].strip()}"
        )
    return _asked(question, (label_text(row[label]),), read)


def _answer(row: Row) -> Asked:
    question = (
        "Answer the question with words of the context.\n\n"
        f"Context: {row['context'].strip()}\n\nQuestion: {row['question'].strip()}"
    )
    return _asked(question, listed(row["answers"])["text"], {"question", "context", "answers"})


def _summarize(row: Row) -> Asked:
    pair = summary_columns(row)
    assert pair is not None  # noqa: S101 - the row was checked
    text, summary = pair
    return _asked(f"Summarize the text.\n\n{row[text].strip()}", (row[summary],), set(pair))


def _translate(row: Row) -> Asked:
    nested = "translation" in row
    pair = listed(row["translation"]) if nested else row
    codes = languages({"translation": pair} if nested else row)
    assert codes is not None  # noqa: S101 - the row was checked
    source, target = codes
    question = (
        f"Translate the text from {_language(source)} to {_language(target)}."
        f"\n\n{pair[source].strip()}"
    )
    return _asked(question, (pair[target],), {"translation"} if nested else set(codes))


def _language(code: str) -> str:
    return _LANGUAGES.get(code.replace("_", "-").partition("-")[0], code)


def _tag(row: Row) -> Asked:
    name = pick(row, task_rows.TAGS)
    assert name is not None  # noqa: S101 - the row was checked
    tokens = [token.strip() for token in listed(row["tokens"])]
    question = (
        "Tag each token as O, or as the beginning (B-) or the inside (I-) of an entity. "
        "Write each token on a line, and its tag behind it.\n\n" + "\n".join(tokens)
    )
    lines = [f"{token} {tag}" for token, tag in zip(tokens, listed(row[name]), strict=True)]
    return _asked(question, ("\n".join(lines),), {"tokens", name})


def tags_of(answer: str, *, like: str) -> list[str]:
    """The tags in an answer, line by line as in the right answer `like`; O where a line is missing.

    A line counts for the token that stands at its place: one that names another token is an O.
    """
    said = [line.rsplit(None, 1) for line in answer.strip().splitlines()]
    found = []
    for place, line in enumerate(like.splitlines()):
        token = line.rsplit(None, 1)[0]
        words = said[place] if place < len(said) else []
        right = len(words) == 2 and words[0].strip() == token
        found.append(words[1] if right and task_rows.is_tag(words[1]) else "O")
    return found


def _asked(question: str, answers: Any, read: set[str]) -> Asked:
    accepted = tuple(answer.strip() for answer in answers)
    return Asked(question, accepted[0], accepted, frozenset(read))


TASKS: Mapping[str, Task] = {
    "chat_completion": Task("chat_completion", chat_rows.faults),
    **{
        name: Task(name, check, ask)
        for name, ask in (
            ("text_completion", None),
            ("text_classification", _classify),
            ("question_answering", _answer),
            ("text_summarization", _summarize),
            ("text_translation", _translate),
            ("token_classification", _tag),
        )
        for check in (task_rows.CHECKS[name],)
    },
}
"""By name. The pictures and films that Azure ML's schema also names are not for a language model."""
