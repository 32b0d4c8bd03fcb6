"""job + limits + dataset report -> Plan, or a PlanError with every reason. Pure: no I/O.

Only a `Plan` can be submitted. It records every resolved value and where it came from, so that two
places that run the same plan have no freedom left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from maas_client.errors import PlanError, Problem
from maas_client.spec import remarks
from maas_client.spec.forecast import Forecast, weigh
from maas_client.spec.hyperparameters import Value
from maas_client.spec.inputs import (
    BaseInfo,
    DataPlan,
    SplitPlan,
    TokenCount,
    data_plan,
    token_count,
)
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits
from maas_client.spec.memory import Thrift
from maas_client.spec.tasks import TASKS
from maas_client.spec.values import Resolved, batch_size, count_steps, learning_rate, resolve

__all__ = [
    "BaseInfo",
    "DataPlan",
    "Forecast",
    "Plan",
    "Resolved",
    "SplitPlan",
    "TokenCount",
    "batch_size",
    "count_steps",
    "learning_rate",
    "make_plan",
    "plan_from_json",
    "resolve",
]


@dataclass(frozen=True, slots=True)
class Plan:
    """A job that one target has agreed to. Made by `make_plan` only."""

    target: str
    job: FineTuningJob
    training: DataPlan
    validation: DataPlan | None
    hyperparameters: tuple[Resolved, ...]
    threads: int | None
    """Threads of a local run; the result depends on them in its last bits."""
    base: BaseInfo | None = None
    tokens: TokenCount | None = None
    split: SplitPlan | None = None
    """None where the job names its validation rows itself, or has none."""
    steps: int | None = None
    """Optimizer steps; None where the rows are elsewhere."""
    forecast: Forecast = field(default_factory=Forecast)
    max_memory: int | None = None
    """Bytes that the run may take."""
    thrift: Thrift | None = None
    """How it spares memory to stay within them; None: as it would without the bound."""
    warnings: tuple[str, ...] = ()
    billed: bool = False
    key: str = ""
    """What tells this submission from all others, at its target; given when it is submitted."""

    @property
    def meaning(self) -> dict[str, Any]:
        """What two plans of the same job share: values, rows and weights, not where they lie."""
        job = self.job.to_dict()
        for name, data in (("training_data", self.training), ("validation_data", self.validation)):
            if data is not None and data.report is not None:
                job[name] = {**job[name], "path": f"sha256:{data.report.sha256}"}
        base = self.base.digest if self.base else None
        return {"job": job, "values": self.values, "base": base, "threads": self.threads}

    @property
    def values(self) -> dict[str, Value | None]:
        """Hyperparameter -> value, of those that the target honours."""
        kept = [entry for entry in self.hyperparameters if entry.treatment in ("given", "default")]
        return {entry.key: entry.value for entry in kept}

    @property
    def seed(self) -> int:
        seed = self.values["seed"]
        assert isinstance(seed, int)  # noqa: S101 - `seed` has a default and one type
        return seed

    def to_json(self) -> dict[str, Any]:
        """The plan as `plan.json` has it; `plan_from_json` reads it back."""
        return {
            "version": 1,
            "target": self.target,
            "job": self.job.to_dict(),
            "training_data": self.training.to_json(),
            "validation_data": self.validation.to_json() if self.validation else None,
            "hyperparameters": {
                entry.key: {
                    "value": entry.value,
                    "source": entry.source,
                    "treatment": entry.treatment,
                    "note": entry.note,
                }
                for entry in self.hyperparameters
            },
            "threads": self.threads,
            "base": self.base.to_json() if self.base else None,
            "tokens": self.tokens.to_json() if self.tokens else None,
            "split": self.split.to_json() if self.split else None,
            "steps": self.steps,
            "forecast": asdict(self.forecast),
            "max_memory": self.max_memory,
            "thrift": asdict(self.thrift) if self.thrift else None,
            "warnings": list(self.warnings),
            "billed": self.billed,
        }


def make_plan(
    job: FineTuningJob,
    limits: Limits,
    *,
    training: DataPlan,
    validation: DataPlan | None = None,
    base: BaseInfo | None = None,
    tokens: TokenCount | None = None,
    validation_tokens: TokenCount | None = None,
    split: SplitPlan | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    warnings: tuple[str, ...] = (),
) -> Plan:
    """Decide whether the target takes the job, and with which values.

    Args:
        job: what the user wants.
        limits: what the target accepts for the job's model.
        training: the training rows and what checking them found.
        validation: the same for the validation rows.
        base: the local weights, for a run that starts from them.
        tokens: what the base model's tokenizer counted, or None for unknown.
        validation_tokens: the same for the validation rows.
        split: how both files were made of one.
        threads: threads of a local run.
        max_memory: bytes that a local run may take.
        warnings: what was noticed before, to be among the plan's.

    Raises:
        PlanError: with every reason at once.
    """
    resolved = resolve(job, limits)
    problems = [
        Problem(f"hyperparameters.{entry.key}: {entry.note}", code="refused")
        for entry in resolved
        if entry.treatment == "refused"
    ]
    problems += [Problem(text, code="model") for text in limits.refusals]
    problems += _job_problems(job, limits)
    for name, data in (("training_data", training), ("validation_data", validation)):
        problems += _data_problems(name, data, limits)
    if tokens is not None and not tokens.trained:
        problems.append(Problem("no token of the training data would be trained", code="no_loss"))
    values = {entry.key: entry.value for entry in resolved if entry.treatment != "ignored"}
    thrift, forecast, unfit = weigh(values, base, tokens, threads=threads, most=max_memory)
    problems += unfit
    if problems:
        count = "1 reason" if len(problems) == 1 else f"{len(problems)} reasons"
        raise PlanError(f"{limits.target} would refuse the job: {count}", problems=tuple(problems))
    rows = training.report.rows if training.report else None
    return Plan(
        target=limits.target,
        job=job,
        training=training,
        validation=validation,
        hyperparameters=resolved,
        threads=threads,
        base=base,
        tokens=tokens,
        split=split,
        steps=count_steps(rows, values) if rows else None,
        forecast=forecast,
        max_memory=max_memory,
        thrift=thrift,
        warnings=(
            *limits.warnings,
            *warnings,
            *remarks.on_base(job, base),
            *(base.remarks if base else ()),
            *remarks.on_values(resolved),
            *remarks.on_data("training_data", training, split=split is not None),
            *remarks.on_data("validation_data", validation, split=split is not None),
            *remarks.on_split(split, validation),
            *remarks.on_tokens("training_data", training, tokens, limits),
            *remarks.on_tokens("validation_data", validation, validation_tokens, limits),
        ),
        billed=limits.hosts,
    )


def plan_from_json(raw: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.to_json` wrote. Dataset reports come back without their warnings."""
    job = FineTuningJob.model_validate(raw["job"])
    base, tokens, split = raw.get("base"), raw.get("tokens"), raw.get("split")
    training = data_plan(raw["training_data"], job.task)
    assert training is not None  # noqa: S101 - to_json always writes it
    return Plan(
        target=raw["target"],
        job=job,
        training=training,
        validation=data_plan(raw.get("validation_data"), job.task),
        hyperparameters=tuple(
            Resolved(key=key, **fields) for key, fields in raw["hyperparameters"].items()
        ),
        threads=raw.get("threads"),
        base=BaseInfo(**base) if base else None,
        tokens=token_count(tokens) if tokens else None,
        split=SplitPlan(**split) if split else None,
        steps=raw.get("steps"),
        forecast=Forecast(**raw.get("forecast", {})),
        max_memory=raw.get("max_memory"),
        thrift=Thrift(**thrift) if (thrift := raw.get("thrift")) else None,
        warnings=tuple(raw.get("warnings", ())),
        billed=bool(raw.get("billed")),
    )


def _job_problems(job: FineTuningJob, limits: Limits) -> list[Problem]:
    problems = []
    if job.task not in limits.tasks:
        problems.append(
            Problem(
                f"task {job.task} is not done here; {', '.join(limits.tasks)} are",
                hint=_task_hint(job, limits),
                code="task",
            )
        )
    if limits.needs_output_name and not job.registered_model:
        problems.append(
            Problem(
                "outputs.registered_model.name is missing: the service registers the result under it",
                hint="outputs: {registered_model: {name: my-model, type: mlflow_model}}",
                code="output_name",
            )
        )
    if job.identity is not None and limits.hosts:
        problems.append(
            Problem(
                f"identity ({job.identity.type}) cannot be sent: azure-ai-ml drops it for fine-tuning jobs",
                hint="remove it; the job runs as you",
                code="identity",
            )
        )
    return problems


def _task_hint(job: FineTuningJob, limits: Limits) -> str:
    """What to do about a task that only a local run has."""
    if job.task not in TASKS or not limits.hosts:
        return ""
    rows = "" if job.training_data.is_remote else f" {job.training_data.path}"
    return (
        f"run it with --target local; or `maas convert{rows} --task {job.task} --out chat.jsonl` "
        "writes its rows as conversations, which are trained as chat_completion"
    )


def _data_problems(name: str, data: DataPlan | None, limits: Limits) -> list[Problem]:
    if data is None:
        return []
    report = data.report
    if report is None:
        if not limits.needs_local_data:
            return []
        hint = "download the file and name its path"
        return [Problem(f"{name}: {data.path} is not on this disk", hint=hint, code="remote_data")]
    problems = []
    if not report.ok:
        first, count = report.problems[0], f"{report.bad_rows:,} of {report.rows:,} rows are bad"
        what = f"{count}, the first on {first}" if report.bad_rows else f"the file is bad: {first}"
        problems.append(
            Problem(
                f"{name}: {what}",
                hint=f"maas validate {data.path} --task {report.task}",
                code="bad_rows",
            )
        )
    elif report.rows < limits.min_rows:
        problems.append(
            Problem(
                f"{name}: {report.rows} rows; at least {limits.min_rows} are needed", code="too_few"
            )
        )
    if report.bytes > limits.max_bytes:
        problems.append(
            Problem(
                f"{name}: {report.bytes:,} bytes; at most {limits.max_bytes:,}",
                hint=limits.size_hint,
                code="too_large",
            )
        )
    return problems
