"""The commands on files of rows: check them, write them as JSONL, and measure a run on them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from maas_client.cli import render
from maas_client.cli.options import Json
from maas_client.cli.tables import counted

Rows = Annotated[Path, typer.Argument(help="Rows: JSONL, or by its ending csv, tsv or parquet.")]
Task = Annotated[str, typer.Option(help="What the rows are for.")]


class Benchmark(StrEnum):
    """A benchmark that is measured on its authors' file."""

    truthfulqa = "truthfulqa"


class Prompt(StrEnum):
    """How a benchmark asks."""

    chat = "chat"
    qa = "qa"


def validate(data: Rows, task: Task = "chat_completion", as_json: Json = False) -> int:
    """Check every row, and report every bad one. Exit code 0 or 1."""
    from maas_client.spec.dataset import check

    report = check(data, task)
    render.dataset(report, as_json=as_json)
    return 0 if report.ok else 1


def convert(
    data: Rows,
    out: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    task: Task = "chat_completion",
) -> int:
    """Write rows as a service takes them: JSONL, and a task's rows as conversations."""
    from maas_client.errors import DatasetError
    from maas_client.spec.dataset import check, numbered_rows, write_jsonl
    from maas_client.spec.tasks import trainable

    report = check(data, task)
    if not report.ok:
        render.dataset(report, as_json=False)
        return 1
    if out.exists():
        raise DatasetError(f"{out} is there already", hint="Name another file with --out.")
    write_jsonl((row for _, row in trainable(numbered_rows(data), task)), out)
    render.line(f"wrote {report.rows:,} rows to {out}")
    return 0


def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="A run directory with an adapter.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Held-out rows; without it, the run's own validation rows."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What the rows are for; without it, the run's task.")
    ] = None,
    benchmark: Annotated[
        Benchmark | None, typer.Option(help="Measure this, on its authors' file in --data.")
    ] = None,
    prompt: Annotated[
        Prompt, typer.Option(help="How a benchmark asks: the chat template, or its paper's way.")
    ] = Prompt.chat,
    as_json: Json = False,
) -> None:
    """Measure loss and metrics on held-out rows, before and after, by the same code."""
    from maas_client import evaluation

    found = evaluation.evaluate(
        run_dir,
        data,
        task=task,
        benchmark=benchmark.value if benchmark else None,
        prompt=prompt.value,
    )
    render.evaluation(found, as_json=as_json)


def split(
    data: Annotated[Path, typer.Argument(help="Rows: jsonl, csv, tsv or parquet.")],
    fraction: Annotated[float, typer.Option(help="Share of rows for validation.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Other sides for other seeds.")] = 42,
    task: Annotated[str, typer.Option(help="What the rows are for.")] = "chat_completion",
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write to.")] = None,
    as_json: Json = False,
) -> None:
    """Write training and validation rows, with no question in both parts. The rows stay as they are."""
    from maas_client import planning

    train, held, made = planning.split(data, task, fraction=fraction, seed=seed, out=out)
    if as_json:
        parts = {"training": train.to_json(), "validation": held.to_json()}
        render.data({**parts, "split": made.to_json()})
        return
    for report in (train, held):
        render.line(f"{report.path}: {counted(report.rows, 'row')}")
    render.line(f"{made.rows:,} rows in {made.groups:,} questions, none in both; seed {made.seed}")
