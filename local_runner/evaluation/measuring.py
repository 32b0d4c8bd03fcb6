"""The runner's `evaluate`: what a base and its adapters are worth on a file, by the same code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from local_runner import adapters, data
from local_runner.evaluate import mean_loss
from local_runner.evaluation import answers, metrics, truthfulqa
from local_runner.generate import Answerer
from local_runner.models import base as bases
from maas_client.spec.dataset import read_rows
from maas_client.spec.tasks import find_task
from maas_client.spec.truthfulqa import read_questions


def on_rows(
    base: bases.Base,
    file: Path,
    *,
    task: str,
    folders: Sequence[Path | None],
    max_seq_length: int = -1,
) -> dict[str, Any]:
    """Loss, perplexity and the task's metric on a file of rows.

    Args:
        base: the base model.
        file: checked rows.
        task: what they are for.
        folders: adapters; None is the base alone.
        max_seq_length: where rows are cut; -1 is the model's context.

    Returns:
        `rows`, `tokens` (trained ones), `base` in words, and `results`: for each of the folders its
        `adapter`, its `loss` in nats, and `metrics`.

    Raises:
        RunnerError: the metric's library is missing.
    """
    answered = find_task(task).ask is not None
    metrics.require(task)
    tokenizer = data.ChatTokenizer(base.folder, model=base.model)
    length = data.max_length(bases.read_config(base.folder), max_seq_length)
    examples = data.load_examples(tokenizer, file, max_length=length, task=task)
    losses = [
        mean_loss(model, examples, pad_id=tokenizer.eos_id) for model in _models(base, folders)
    ]
    results = [
        {
            "adapter": str(folder) if folder else None,
            "loss": loss,
            "metrics": {"perplexity": math.exp(min(loss, 700))},
        }
        for folder, loss in zip(folders, losses, strict=True)
    ]
    if answered:
        rows = list(read_rows(file))
        answerer = Answerer(base)
        for folder, result in zip(folders, results, strict=True):
            result["metrics"] |= answers.score(answerer, folder, task, rows)  # type: ignore[operator]
    tokens = data.count(examples, counted_by="").trained
    return {
        "task": task,
        "rows": len(examples),
        "tokens": tokens,
        "base": base.info.label,
        "results": results,
    }


def on_truthfulqa(
    base: bases.Base, file: Path, *, prompt: str, folders: Sequence[Path | None]
) -> dict[str, Any]:
    """MC1 and MC2 on TruthfulQA's CSV.

    Returns:
        `benchmark`, `prompt` and what it is in words, `rows` (questions), `base` in words, and
        `results`: for each of the folders its `adapter`, and `metrics`.
    """
    questions = read_questions(file)
    tokenizer = data.ChatTokenizer(base.folder, model=base.model)
    found = [
        truthfulqa.measure(model, tokenizer, questions, prompt=prompt)
        for model in _models(base, folders)
    ]
    results = [
        {
            "adapter": str(folder) if folder else None,
            "metrics": {"mc1": each.mc1, "mc2": each.mc2},
        }
        for folder, each in zip(folders, found, strict=True)
    ]
    return {
        "benchmark": "truthfulqa",
        "prompt": prompt,
        "prompt_format": truthfulqa.PROMPTS[prompt],
        "rows": len(questions),
        "base": base.info.label,
        "results": results,
    }


def _models(base: bases.Base, folders: Sequence[Path | None]) -> Iterator[Any]:
    """The base with one adapter after another; read from the disk once."""
    model: Any = bases.load(base)
    for folder in folders:
        if folder is None:
            yield model
        else:
            adapted = adapters.open_on(model, folder)
            yield adapted
            model = adapters.release(model, adapted)
