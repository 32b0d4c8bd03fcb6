"""job + limits + dataset report -> Plan, or a PlanError with every reason. Pure: no I/O.

Only a `Plan` can be submitted. It records every resolved value and where it came from, so that two
places that run the same plan have no freedom left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from maas_client.errors import PlanError, Problem
from maas_client.spec.dataset import DatasetReport
from maas_client.spec.hyperparameters import KNOBS, Value, read
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits
from maas_client.spec.memory import Rows, Shape, Thrift, is_forecast, settle, size_words
from maas_client.spec.tasks import TASKS

Treatment = Literal["given", "default", "ignored", "refused"]
Source = Literal["job file", "model default", "component default", "target"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """One hyperparameter as the target will take it."""

    key: str
    value: Value | None
    source: Source
    treatment: Treatment
    note: str = ""
    """Why it is ignored or refused, and the next step; or how it is said to the target."""


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """The weights and tokenizer that a local run starts from."""

    source: str
    """What to load: a folder, or a hub id that is in the cache."""
    label: str
    """In words for people; a stand-in says that it is one."""
    digest: str
    """sha256 over the weights."""
    stand_in: bool = False
    """Whether it is another model than the job names."""
    remarks: tuple[str, ...] = ()
    """What its tokenizer has that the catalogue's model has not."""
    shape: Shape | None = None
    """Its sizes; None where the memory of its architecture is not forecast."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "remarks", tuple(self.remarks))  # JSON has lists
        if isinstance(self.shape, Mapping):
            object.__setattr__(self, "shape", Shape(**self.shape))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of a dataset under one tokenizer and chat template."""

    total: int
    trained: int
    """Tokens that carry loss: assistant turns and their end token."""
    longest: int
    """Tokens of the longest row, before it is cut."""
    truncated_rows: int
    """Rows longer than max_seq_length."""
    counted_by: str
    """The tokenizer in words; a stand-in says that it is one."""
    longest_kept: int = 0
    """Tokens of the longest row, after it is cut; 0 where it was not counted."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DataPlan:
    """Rows that a job will read."""

    path: str
    """An absolute path on this disk, or a reference that only the target can read."""
    report: DatasetReport | None = None
    """None where the rows are elsewhere."""
    converted_from: str | None = None
    """The user's own file, where the target does not take its format and `path` is made of it."""

    def to_json(self) -> dict[str, Any]:
        report = self.report
        brief = None
        if report is not None:
            brief = {key: getattr(report, key) for key in ("rows", "bytes", "sha256", "turns")}
        made = {"converted_from": self.converted_from} if self.converted_from else {}
        return {"path": self.path, **(brief or {}), **made}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the run will cost. None is `unknown`: nothing is guessed."""

    cost_usd: float | None = None
    memory_bytes: int | None = None
    memory: Mapping[str, int] | None = None
    """What the bytes are for, by part."""
    seconds: float | None = None


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
    threads: int | None = None,
    max_memory: int | None = None,
) -> Plan:
    """Decide whether the target takes the job, and with which values.

    Args:
        job: what the user wants.
        limits: what the target accepts for the job's model.
        training: the training rows and what checking them found.
        validation: the same for the validation rows.
        base: the local weights, for a run that starts from them.
        tokens: what the base model's tokenizer counted, or None for unknown.
        threads: threads of a local run.
        max_memory: bytes that a local run may take.

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
    thrift, forecast, unfit = _memory(values, base, tokens, threads, max_memory)
    problems += unfit
    if problems:
        count = "1 reason" if len(problems) == 1 else f"{len(problems)} reasons"
        raise PlanError(f"{limits.target} would refuse the job: {count}", problems=tuple(problems))
    rows = training.report.rows if training.report else None
    stand_in = (
        [f"Trains {base.label}, not {job.model.asset_name}."] if base and base.stand_in else []
    )
    return Plan(
        target=limits.target,
        job=job,
        training=training,
        validation=validation,
        hyperparameters=resolved,
        threads=threads,
        base=base,
        tokens=tokens,
        steps=count_steps(rows, values) if rows else None,
        forecast=forecast,
        max_memory=max_memory,
        thrift=thrift,
        warnings=(
            *limits.warnings,
            *stand_in,
            *(base.remarks if base else ()),
            *_value_warnings(resolved),
            *_data_warnings("training_data", training),
            *_data_warnings("validation_data", validation),
            *_token_warnings(tokens),
        ),
        billed=limits.hosts,
    )


def _memory(
    values: Mapping[str, Any],
    base: BaseInfo | None,
    tokens: TokenCount | None,
    threads: int | None,
    most: int | None,
) -> tuple[Thrift | None, Forecast, list[Problem]]:
    """How the run spares memory, what it will take, and why it cannot stay within its bound."""
    shape = base.shape if base else None
    if not (shape and tokens and tokens.longest_kept and threads and is_forecast(values)):
        why = "the memory of this model, method or target is not forecast, so no bound can be kept"
        hint = "Leave --max-memory out."
        refused = [Problem(f"--max-memory: {why}", hint=hint, code="memory")] if most else []
        return None, Forecast(), refused
    a_step = batch_size(values) * int(values.get("gradient_accumulation_steps") or 1)
    rows = Rows(tokens.total, tokens.trained, tokens.longest_kept, a_step)
    thrift, parts, advice = settle(shape, values, rows, threads=threads, most=most)
    forecast = Forecast(memory_bytes=parts.total, memory=asdict(parts))
    if most is None or not advice:
        return thrift, forecast, []
    words = f"--max-memory is {size_words(most)}; the run takes at least {size_words(parts.total)}"
    return None, forecast, [Problem(words, hint=advice, code="memory")]


def resolve(job: FineTuningJob, limits: Limits) -> tuple[Resolved, ...]:
    """Every knob with its value, source and treatment, refusals included, in the knobs' order.

    Precedence, the same on every target: job file > the model's defaults > the component's defaults.
    """
    defaults = limits.model.defaults if limits.model else {}
    return tuple(
        entry
        for knob in KNOBS.values()
        if (entry := _resolve(knob.name, job.hyperparameters, defaults, limits)) is not None
    )


def count_steps(rows: int, values: Mapping[str, Value | None]) -> int:
    """Optimizer steps for so many rows; the last batch of an epoch may be smaller."""
    max_steps = values.get("max_steps")
    if isinstance(max_steps, int) and max_steps > 0:
        return max_steps
    per_step = batch_size(values) * int(values.get("gradient_accumulation_steps") or 1)
    per_epoch = math.ceil(rows / per_step)
    return math.ceil(per_epoch * float(values.get("num_train_epochs") or 1))


def batch_size(values: Mapping[str, Value | None]) -> int:
    """Rows in one forward pass, the portal's multiplier applied."""
    scale = values.get("batch_size_multiplier")
    return max(1, round(int(values.get("per_device_train_batch_size") or 1) * float(scale or 1)))


def learning_rate(values: Mapping[str, Value | None]) -> float:
    """Peak step size, the portal's multiplier applied."""
    scale = values.get("learning_rate_multiplier")
    return float(values.get("learning_rate") or 0) * (1.0 if scale is None else float(scale))


def plan_from_json(raw: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.to_json` wrote. Dataset reports come back without their warnings."""
    job = FineTuningJob.model_validate(raw["job"])
    base, tokens = raw.get("base"), raw.get("tokens")
    training = _data_from_json(raw["training_data"], job.task)
    assert training is not None  # noqa: S101 - to_json always writes it
    return Plan(
        target=raw["target"],
        job=job,
        training=training,
        validation=_data_from_json(raw.get("validation_data"), job.task),
        hyperparameters=tuple(
            Resolved(key=key, **fields) for key, fields in raw["hyperparameters"].items()
        ),
        threads=raw.get("threads"),
        base=BaseInfo(**base) if base else None,
        tokens=TokenCount(**tokens) if tokens else None,
        steps=raw.get("steps"),
        forecast=Forecast(**raw.get("forecast", {})),
        max_memory=raw.get("max_memory"),
        thrift=Thrift(**thrift) if (thrift := raw.get("thrift")) else None,
        warnings=tuple(raw.get("warnings", ())),
        billed=bool(raw.get("billed")),
    )


def _data_from_json(raw: Mapping[str, Any] | None, task: str) -> DataPlan | None:
    if raw is None:
        return None
    if "rows" not in raw:
        return DataPlan(raw["path"])
    fields = {key: raw[key] for key in ("rows", "bytes", "sha256", "turns")}
    report = DatasetReport(path=raw["path"], task=task, **fields)
    return DataPlan(raw["path"], report, raw.get("converted_from"))


def _resolve(
    key: str, given: Mapping[str, str | None], defaults: Mapping[str, str], limits: Limits
) -> Resolved | None:
    knob = KNOBS[key]
    text = given.get(key)
    if text is not None:
        return _given(key, read(knob, text), text, limits)
    if key in defaults:
        value, source = read(knob, defaults[key]), "model default"
    elif knob.default is not None:
        value, source = knob.default, "component default"
    else:
        return None
    if key in limits.ignored:
        return Resolved(key, value, source, "ignored", limits.ignored[key])  # type: ignore[arg-type]
    if key not in limits.honoured:
        return None  # nobody asked for it, and this target does not have it
    choices = limits.choices.get(key)
    if choices and _text(value) not in choices:
        note = f"{limits.target} does not do the default {_text(value)}"
        return Resolved(key, read(knob, choices[0]), "target", "default", note)
    return Resolved(key, value, source, "default", limits.said.get(key, ""))  # type: ignore[arg-type]


def _given(key: str, value: Value, text: str, limits: Limits) -> Resolved:
    def verdict(treatment: Treatment, note: str = "") -> Resolved:
        return Resolved(key, value, "job file", treatment, note)

    if key in limits.ignored:
        return verdict("ignored", limits.ignored[key])
    if key in limits.refused or key not in limits.honoured:
        note = limits.refused.get(key) or f"{limits.target} does not have it; remove it"
        return verdict("refused", note)
    choices = limits.choices.get(key)
    if choices and _text(value) not in choices:
        return verdict(
            "refused", f"{text} is not done by {limits.target}; it does {' | '.join(choices)}"
        )
    low, high = limits.bounds.get(key, (-math.inf, math.inf))
    if isinstance(value, int | float) and not low <= value <= high:
        model = limits.model.name if limits.model else "this model"
        return verdict(
            "refused",
            f"{text} is outside {low:g} to {high:g}, what the service takes for {model}",
        )
    return verdict("given", limits.said.get(key, ""))


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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


def _value_warnings(resolved: tuple[Resolved, ...]) -> list[str]:
    replaced = [
        f"{entry.key}: {entry.note}; {_text(entry.value)} is used."
        for entry in resolved
        if entry.source == "target" and entry.value is not None
    ]
    ignored = [
        f"{entry.key} in the job file is ignored: {entry.note}."
        for entry in resolved
        if entry.treatment == "ignored" and entry.source == "job file"
    ]
    return replaced + ignored


def _data_warnings(name: str, data: DataPlan | None) -> list[str]:
    if data is None or data.report is None:
        return []
    said = []
    if data.converted_from:
        said.append(f"{name}: {data.converted_from} is not JSONL; {data.path} is sent, made of it.")
    if data.report.warnings:
        first, count = data.report.warnings[0], len(data.report.warnings)
        said.append(f"{name}: {count} remark{'s' if count > 1 else ''}, the first on {first}.")
    return said


def _token_warnings(tokens: TokenCount | None) -> list[str]:
    if tokens is None:
        return []
    cut = tokens.truncated_rows
    return [f"{cut:,} rows are longer than max_seq_length and lose their end."] if cut else []
