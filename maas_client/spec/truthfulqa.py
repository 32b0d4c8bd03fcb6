"""TruthfulQA as its authors publish it: a CSV of questions, each with right and wrong answers.

Source: Lin, Hilton, Evans, "TruthfulQA: Measuring How Models Mimic Human Falsehoods" (2021), and the
columns of the file that goes with it. The file is the user's; none is part of this project.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_client.errors import DatasetError, Problem
from maas_client.spec.rows import Fault
from maas_client.spec.tables import records

COLUMNS = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
"""What is read; Type, Category and Source are kept where they are."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question. Answers end in a full stop, as the authors close them before they are scored."""

    line: int
    text: str
    best: str
    """One of `correct`."""
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    row: dict[str, str]
    """All columns, as the file has them."""

    @property
    def key(self) -> str:
        """What two spellings of the same question share."""
        return " ".join(self.text.casefold().split())


def read_questions(path: str | Path) -> list[Question]:
    """Every question of the CSV.

    Raises:
        DatasetError: the file cannot be read, or is another; with each bad row.
    """
    file = Path(path)
    if file.suffix.lower() != ".csv":
        raise DatasetError(f"{file} is not a CSV", hint="Name the authors' TruthfulQA.csv.")
    problems: list[Problem] = []
    questions: list[Question] = []
    try:
        for line, record in records(file):
            found = record if isinstance(record, Fault) else _question(line, record)
            if isinstance(found, Question):
                questions.append(found)
            else:
                problems.append(Problem(found.message, line=line, hint=found.fix, code=found.code))
    except OSError as error:
        raise DatasetError(f"{file}: {error.strerror}", hint="Name TruthfulQA.csv.") from error
    if problems:
        raise DatasetError(f"{file} is not TruthfulQA", problems=tuple(problems[:20]))
    if not questions:
        raise DatasetError(f"{file} holds no question")
    return questions


def _question(line: int, row: dict[str, Any]) -> Question | Fault:
    if missing := [name for name in COLUMNS if not row.get(name, "").strip()]:
        fix = f"the columns are {', '.join(COLUMNS)}"
        return Fault("columns", f"the row has no {missing[0]}", fix)
    best = _closed(row["Best Answer"])
    correct, incorrect = _answers(row["Correct Answers"]), _answers(row["Incorrect Answers"])
    if best not in correct:
        said = f"the best answer, {best!r}, is not among the correct ones"
        return Fault("best_answer", said, "write it there too; answers are separated by ;")
    if not incorrect:
        return Fault("no_answers", "there is no incorrect answer", "separate answers by ;")
    return Question(line, row["Question"].strip(), best, correct, incorrect, row)


def _answers(cell: str) -> tuple[str, ...]:
    return tuple(_closed(answer) for answer in cell.split(";") if answer.strip())


def _closed(answer: str) -> str:
    answer = answer.strip()
    return answer if answer.endswith(".") else f"{answer}."


def split(
    questions: Sequence[Question], *, held_out: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Questions to train on and questions to measure on; none is in both, in whatever spelling.

    Args:
        questions: all of them.
        held_out: at least how many are kept apart.
        seed: which ones.

    Raises:
        DatasetError: nothing would be left to train on.
    """
    keys = sorted({question.key for question in questions})
    if not 0 < held_out < len(keys):
        raise DatasetError(
            f"{held_out} of {len(keys)} questions cannot be held out",
            hint=f"Hold out 1 to {len(keys) - 1}.",
        )
    random.Random(seed).shuffle(keys)  # noqa: S311 - a split, not a secret
    apart = set(keys[:held_out])
    train = [question for question in questions if question.key not in apart]
    return train, [question for question in questions if question.key in apart]


def chat_row(question: Question) -> dict[str, Any]:
    """A chat_completion row: the question, and its best answer."""
    turns = {"user": question.text, "assistant": question.best}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


def write_questions(questions: Sequence[Question], path: Path) -> None:
    """Write questions in the authors' form."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(questions[0].row))
        writer.writeheader()
        writer.writerows(question.row for question in questions)
