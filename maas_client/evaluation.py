"""What a run has learned, measured on held-out rows or a benchmark: before and after, by the same code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from maas_client.errors import DatasetError, RunDirError
from maas_client.plan import Plan, plan_from_json
from maas_client.spec.dataset import check
from maas_client.spec.rundir import RunDir, file_digest, read_json, write_json
from maas_client.spec.truthfulqa import read_questions
from maas_client.targets import runner

Benchmark = Literal["truthfulqa"]
Prompt = Literal["chat", "qa"]


def evaluate(
    run_dir: str | Path,
    data: str | Path | None = None,
    *,
    task: str | None = None,
    benchmark: Benchmark | None = None,
    prompt: Prompt = "chat",
) -> dict[str, Any]:
    """Measure the base alone, and then with the run's adapter; also written under the run.

    Args:
        run_dir: a run that left an adapter.
        data: held-out rows, or the benchmark's file; without it, the run's own validation rows.
        task: what the rows are for, where that is not the run's task.
        benchmark: measure this instead, on its authors' file.
        prompt: how a benchmark asks: through the model's chat template, or as its paper does.

    Returns:
        `rows`, `base` in words, and `results`: for the base and for the adapter, `metrics`, and for rows
        the mean `loss` of their trained tokens in nats. Fractions are from 0 to 1, BLEU and chrF to 100.
        `file` is where it was written.

    Raises:
        DatasetError: the rows are bad, or there are none.
        RunDirError: the run left no adapter, or its base is not what it was.
        RunnerError: the library that a metric comes from is missing.
    """
    run, done = ended_run(Path(run_dir))
    file = _file(done, data, benchmark)
    name = task or done.job.task
    if benchmark:
        read_questions(file)
    elif not (report := check(file, name)).ok:
        raise DatasetError(
            f"{file} cannot be evaluated: {report.problems[0]}",
            hint=f"maas validate {file} --task {name}",
        )
    base = ("--base", done.base.source) if done.base else ()
    length = ("--max-seq-length", str(done.values.get("max_seq_length") or -1))
    what = ("--benchmark", benchmark, "--prompt", prompt) if benchmark else ("--task", name)
    found = runner.ask(
        *("evaluate", *base, "--model", done.job.model.asset_name, "--data", str(file)),
        *(*what, *length, "--with-base", "--adapter", str(run.trained)),
    )
    return _keep(run, found, file, f"{benchmark}-{prompt}" if benchmark else name)


def ended_run(path: Path) -> tuple[RunDir, Plan]:
    """A run that left an adapter, and its plan.

    Raises:
        RunDirError: it did not, or its base is no longer the one that it was trained on.
    """
    run = RunDir(path)
    done = plan_from_json(read_json(run.plan_file))
    status = run.read_status()
    if status is not None and status.simulated:
        raise RunDirError(f"{path} was simulated: nothing was trained")
    if not any((run.trained / name).exists() for name in ("adapter_config.json", "config.json")):
        raise RunDirError(f"{path} left no adapter", hint="Run it to its end first.")
    if done.base is not None:
        found = runner.base_info(done.base.source, model=done.job.model.asset_name)
        if found.digest != done.base.digest:
            raise RunDirError(f"{found.label} is not what {path} was trained on any more")
    return run, done


def _file(done: Plan, data: str | Path | None, benchmark: Benchmark | None) -> Path:
    if data is not None:
        return Path(data)
    if benchmark:
        raise DatasetError(
            f"{benchmark} is measured on its authors' file, which is not part of this project",
            hint="Name it with --data TruthfulQA.csv.",
        )
    if done.validation is None or done.validation.report is None:
        raise DatasetError(
            "there are no rows to measure on: the run had no validation data on this disk",
            hint="Name held-out rows with --data.",
        )
    return Path(done.validation.path)


def _keep(run: RunDir, found: dict[str, Any], file: Path, what: str) -> dict[str, Any]:
    """Write what was found under the run, by what was measured on which content."""
    digest = file_digest(file)
    place = run.evaluations / f"{what}-{file.stem}-{digest[:8]}.json"
    kept = {**found, "data": {"path": str(file.resolve()), "sha256": digest}}
    write_json(place, {**kept, "measured_at": round(time.time(), 3)})
    return {**kept, "file": str(place)}
