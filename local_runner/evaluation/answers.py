"""Greedy answers to a task's rows, many in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local_runner.evaluation import metrics
from local_runner.generate import Answer, Answerer, Ask
from maas_client.spec import task_rows
from maas_client.spec.tasks import Asked, find_task

_AT_ONCE = 256
"""Answers that are begun together; the batch takes as many of them as it has room for."""


def score(
    answerer: Answerer, adapter: Path | None, task: str, rows: Sequence[Mapping[str, Any]]
) -> metrics.Scores:
    """The task's metrics over greedy answers.

    Args:
        answerer: the base.
        adapter: what was trained on it, or None for the base alone.
        task: one whose rows are questions and answers.
        rows: checked rows.
    """
    ask = find_task(task).ask
    assert ask is not None  # noqa: S101 - the caller asked for one that has answers
    asked = [ask(row) for row in rows]
    said = _answers(answerer, adapter, asked)
    pair = task_rows.languages(rows[0]) if task == "text_translation" else None
    language = pair[1] if pair else ""
    return metrics.score(task, said, [each.accepted for each in asked], language=language)


def _answers(answerer: Answerer, adapter: Path | None, asked: Sequence[Asked]) -> list[str]:
    right = [text for each in asked for text in each.accepted]
    # One limit for all rows: a row's own would tell the model how long its answer is.
    longest = max(len(code) for code in answerer.tokenizer.raw.encode_batch(right))
    said = []
    for start in range(0, len(asked), _AT_ONCE):
        begun = [
            answerer.begin(
                Ask(
                    [{"role": "user", "content": each.question}],
                    adapter=adapter,
                    max_tokens=longest + longest // 4 + 8,
                )
            )
            for each in asked[start : start + _AT_ONCE]
        ]
        while not all(answer.over for answer in begun):
            answerer.step()
        said += [_text(answer) for answer in begun]
    return said


def _text(answer: Answer) -> str:
    return "".join(piece for piece in answer.pieces if isinstance(piece, str)).strip()
