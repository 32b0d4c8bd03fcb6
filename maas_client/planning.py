"""What a plan is made of: the job's rows, checked, split where asked for, and counted in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_client.errors import DatasetError, RunnerError, SpecError
from maas_client.plan import BaseInfo, DataPlan, SplitPlan, TokenCount
from maas_client.spec.dataset import DatasetReport, as_jsonl, check
from maas_client.spec.hyperparameters import KNOBS, read
from maas_client.spec.job import DataInput, FineTuningJob
from maas_client.spec.limits import Limits, local_limits
from maas_client.spec.loading import load_job
from maas_client.spec.split import split_file
from maas_client.spec.tables import format_of
from maas_client.targets import runner


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a job."""

    training: DataPlan
    validation: DataPlan | None
    split: SplitPlan | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """What the base's tokenizer made of them; all None where there is no tokenizer to count with."""

    base: BaseInfo | None = None
    tokens: TokenCount | None = None
    validation_tokens: TokenCount | None = None
    warnings: tuple[str, ...] = ()


def gather(
    job: FineTuningJob, folder: Path, limits: Limits, *, validation_split: float | None = None
) -> Rows:
    """Check the rows, and hold a part of them out where that is asked for.

    Args:
        job: as loaded.
        folder: what its paths are relative to.
        limits: the target's.
        validation_split: the share of the training rows to validate with.

    Raises:
        SpecError: rows cannot be held out of this job's.
        DatasetError: a file cannot be read, or not be parted.
    """
    training = _data(job.training_data, job.task, folder, limits)
    if validation_split is None:
        named = job.validation_data
        return Rows(training, _data(named, job.task, folder, limits) if named else None)
    if job.validation_data is not None:
        raise SpecError(
            f"the job names validation_data ({job.validation_data.path}), so nothing is split off",
            hint="Remove validation_data from the job file, or leave the validation split out.",
        )
    if training.report is None:
        raise SpecError(
            f"{training.path} is not on this disk, so it cannot be split",
            hint="Download it and name its path, or name validation_data.",
        )
    if not training.report.ok:
        return Rows(training, None)  # the plan is refused for that
    train, held, split = split_file(training.report, fraction=validation_split, seed=_seed(job))
    own = training.converted_from or training.path
    return Rows(
        DataPlan(train.path, train, converted_from=own),
        DataPlan(held.path, held, converted_from=own),
        split,
    )


def sent(job: FineTuningJob, rows: Rows) -> FineTuningJob:
    """The job with the files that are made of the user's in their place."""
    made: dict[str, Any] = {}
    for key, data in (("training_data", rows.training), ("validation_data", rows.validation)):
        if data is not None and data.converted_from:
            like = getattr(job, key) or job.training_data
            made[key] = like.model_copy(update={"path": data.path})
    return job.model_copy(update=made)


def count(
    job: FineTuningJob, limits: Limits, rows: Rows, base: str | None, *, trains: bool
) -> Counted:
    """Count tokens with the tokenizer that will be trained with, or that `base` names.

    Args:
        job: as it will be sent.
        limits: the target's.
        rows: the job's, checked.
        base: as for `--base`.
        trains: whether the weights are needed here, so that their lack is an error.

    Raises:
        BaseModelError: there are no weights, and they are needed.
        DatasetError: rows that cannot be trained on.
    """
    held = rows.validation if rows.validation and rows.validation.report else None
    try:
        info, tokens, held_tokens = runner.count_tokens(
            base,
            model=job.model.asset_name,
            task=job.task,
            data=Path(rows.training.path),
            validation=Path(held.path) if held else None,
            max_seq_length=_length(job, limits),
            # What the service does with such a turn is the service's: it is counted, and warned about.
            system_turns="fold" if limits.hosts else _system_turns(job),
        )
    except RunnerError:
        # A hosted or simulated job needs no weights here; without them its count is unknown.
        if trains or base is not None:
            raise
        return Counted()
    except DatasetError as error:
        if not limits.hosts or any(problem.code == "no_loss" for problem in error.problems):
            raise
        why = f"{error.message}: {error.problems[0]}" if error.problems else error.message
        return Counted(
            warnings=(f"The tokens are not counted, for this template cannot say {why}.",)
        )
    return Counted(info, tokens, held_tokens)


def split(
    data: str | Path, task: str, *, fraction: float, seed: int, out: Path | None = None
) -> tuple[DatasetReport, DatasetReport, SplitPlan]:
    """Write `NAME.train.jsonl` and `NAME.validation.jsonl`, with no question in both.

    Args:
        data: rows in any format that is read.
        task: what they are for; it says what of a row is the question.
        fraction: share of rows for validation.
        seed: other sides for other seeds.
        out: the folder to write to; None is the rows' own.

    Raises:
        DatasetError: the rows are bad, cannot be parted, or there is a file of that name.
    """
    file = Path(data)
    report = check(file, task)
    if not report.ok:
        raise DatasetError(
            f"{file} cannot be split: {report.problems[0]}",
            hint=f"maas validate {file} --task {task}",
        )
    folder = out or file.parent
    train, held = (folder / f"{file.stem}.{part}.jsonl" for part in ("train", "validation"))
    for place in (train, held):
        if place.exists():
            raise DatasetError(f"{place} is there already", hint="Name another folder with --out.")
    return split_file(report, fraction=fraction, seed=seed, into=(train, held))


def preview(
    job_file: str | Path, *, base: str | None = None, rows: int = 3, line: int = 1
) -> dict[str, Any]:
    """Some training rows token by token, as a run on this machine would read them.

    Args:
        job_file: Azure ML's fine-tuning YAML.
        base: whose tokenizer and template: as for `plan_job`.
        rows: how many.
        line: from which line of the file on.

    Returns:
        `path` of the rows, `base`, `max_seq_length`, and `rows`: each with its `line`, `length` and
        `trained` in tokens, `cut`, `notes`, and `tokens` (`id`, `text`, `trained`, `end`), or `error`.

    Raises:
        SpecError: the job file is wrong.
        DatasetError: the rows are not on this disk, or bad, or have no such line.
        BaseModelError: there is no tokenizer.
    """
    file = Path(job_file)
    job = load_job(file)
    if job.training_data.is_remote:
        raise DatasetError(
            f"{job.training_data.path} is not on this disk", hint="Download it and name its path."
        )
    report = check(job.training_data.local_path(file.parent), job.task)
    if not report.ok:
        raise DatasetError(
            f"{report.path} cannot be shown: {report.problems[0]}",
            hint=f"maas validate {report.path} --task {job.task}",
        )
    found = runner.preview(
        base,
        model=job.model.asset_name,
        task=job.task,
        data=Path(report.path),
        max_seq_length=_length(job, local_limits(job.model)),
        system_turns=_system_turns(job),
        rows=rows,
        line=line,
    )
    return {"path": report.path, **found}


def _data(data: DataInput, task: str, folder: Path, limits: Limits) -> DataPlan:
    if data.is_remote:
        return DataPlan(data.path)
    file = data.local_path(folder)
    report = check(file, task)
    if report.ok and format_of(file) not in limits.formats:
        made = as_jsonl(report)
        return DataPlan(str(made), check(made, task), converted_from=str(file))
    return DataPlan(str(file), report)


def _length(job: FineTuningJob, limits: Limits) -> int | None:
    given = job.hyperparameters.get("max_seq_length") or (
        limits.model.defaults.get("max_seq_length") if limits.model else None
    )
    length = int(given) if given and given.lstrip("-").isdigit() else -1
    return length if length > 0 else None


def _system_turns(job: FineTuningJob) -> str:
    knob = KNOBS["system_turns"]
    return str(read(knob, job.hyperparameters.get("system_turns") or str(knob.default)))


def _seed(job: FineTuningJob) -> int:
    knob = KNOBS["seed"]
    return int(read(knob, job.hyperparameters.get("seed") or str(knob.default)))
