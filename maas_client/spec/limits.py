"""What a target accepts for a model, as data. Deciding is `plan.make_plan`'s, and is pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

from maas_client.spec import dataset
from maas_client.spec.catalog import ModelEntry, Outsider, catalog, find_model, find_outsider
from maas_client.spec.hyperparameters import KNOBS
from maas_client.spec.job import ModelInput
from maas_client.spec.methods import read_together
from maas_client.spec.tables import FORMATS
from maas_client.spec.tasks import TASKS

LOCAL_ONLY = frozenset(
    {
        "load_best_model_at_end",
        "metric_for_best_model",
        "peft_method",
        "use_dora",
        "use_rslora",
        "init_lora_weights",
        "num_virtual_tokens",
        "oft_block_size",
        "load_in_4bit",
        "load_in_8bit",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "packing",
        "system_turns",
    }
)
"""What the hosted components do not have: peft's and Hugging Face's names, and what only we do."""

RUNNER_HONOURS = frozenset(
    {
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "learning_rate_multiplier",
        "batch_size_multiplier",
        "lr_scheduler_type",
        "warmup_steps",
        "warmup_ratio",
        "weight_decay",
        "max_grad_norm",
        "optim",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "seed",
        "max_seq_length",
        "apply_lora",
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "merge_lora_weights",
        "apply_early_stopping",
        "early_stopping_patience",
        "early_stopping_threshold",
        "evaluation_strategy",
        "eval_steps",
        "logging_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "enable_full_determinism",
        "precision",
        "auto_find_batch_size",
        "resume_from_checkpoint",
    }
) | (LOCAL_ONLY - {"packing"})
"""What the local runner does exactly."""

_ONE_PROCESS = "one process on a CPU needs none, and the result does not depend on it"
RUNNER_IGNORES: Mapping[str, str] = {
    "apply_deepspeed": _ONE_PROCESS,
    "deepspeed_stage": _ONE_PROCESS,
    "apply_ort": "the kernels are PyTorch's; the result does not depend on it",
}
"""What changes how a run is carried out, not its result: accepted, shown, and not done."""

RUNNER_CHOICES: Mapping[str, tuple[str, ...]] = {"precision": ("32", "bf16")}
"""Where the runner does fewer of a knob's values than the field has."""
_HOSTED_CHOICES: Mapping[str, tuple[str, ...]] = {"resume_from_checkpoint": ("true", "false")}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one target accepts for one model."""

    target: str
    """The target's name in the settings."""
    model: ModelEntry | None
    """None where the catalogue does not know the model."""
    honoured: frozenset[str]
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Key -> why it changes nothing here."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Key -> why it, or this job's value, cannot be said here, and the nearest that can."""
    said: Mapping[str, str] = field(default_factory=dict)
    """Key -> how this job's value is said to the target, where that is not by its name."""
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("chat_completion", "text_completion")
    formats: tuple[str, ...] = ("jsonl",)
    """How rows may be written; what is written otherwise is made JSONL before it is sent."""
    max_bytes: int = dataset.MAX_BYTES
    size_hint: str = ""
    """What to do about rows that are more."""
    min_rows: int = 1
    needs_local_data: bool = False
    needs_output_name: bool = False
    region: str | None = None
    """Where the target is; None where there is no such thing."""
    refusals: tuple[str, ...] = ()
    """Why the model cannot be tuned here at all, each with its next step."""
    warnings: tuple[str, ...] = ()
    hosts: bool = False
    """Whether somebody pays for it by the hour or token."""


def local_limits(
    model: ModelInput,
    *,
    target: str = "local",
    today: dt.date | None = None,
    hyperparameters: Mapping[str, str | None] | None = None,
    missing: frozenset[str] = frozenset(),
) -> Limits:
    """What the local runner accepts.

    Args:
        model: the job's base model.
        target: the target's name.
        today: the day that a retired model is warned about by; None says nothing of it.
        hyperparameters: the job's, which are read against each other.
        missing: packages that some of them need, and that are not installed.
    """
    entry = find_model(model.asset_name)
    given = hyperparameters or {}
    reading = read_together(given, entry.defaults if entry else {}, missing=missing)
    unused = {key: words for key, words in reading.unused.items() if given.get(key) is not None}
    refusals: tuple[str, ...] = ()
    if entry is None and (outsider := find_outsider(model.asset_name)) is not None:
        refusals = (_outside(outsider),)
    retired = retirement(entry, today) if today is not None else ()
    return Limits(
        target=target,
        model=entry,
        honoured=RUNNER_HONOURS - reading.unused.keys(),
        ignored={**RUNNER_IGNORES, **unused},
        refused=reading.refused,
        choices=RUNNER_CHOICES,
        tasks=tuple(TASKS),
        formats=FORMATS,
        needs_local_data=True,
        refusals=refusals,
        warnings=tuple(f"On the service, {text} It trains here as ever." for text in retired),
    )


def hosted_limits(
    model: ModelInput,
    *,
    target: str,
    managed_compute: bool,
    region: str | None,
    today: dt.date,
    retirement_refuses: bool = False,
) -> Limits:
    """What Azure ML's fine-tuning accepts, serverless or on managed compute.

    Args:
        model: the job's base model.
        target: the target's name.
        managed_compute: whether the job brings its own compute (MaaP) instead of serverless (MaaS).
        region: the workspace's region, or None where it is not known yet.
        today: the day that retirement is judged by.
        retirement_refuses: whether a retired model is refused (the mock, which decides) or warned
            about (the client, where the service decides).
    """
    entry = find_model(model.asset_name)
    refusals: list[str] = []
    warnings: list[str] = []
    if entry is None:
        refusals.append(unknown_model(model.asset_name))
    else:
        refusals += _model_refusals(entry, model, region, managed_compute=managed_compute)
        if _is_doubtful(entry, model):
            warnings.append(
                f"{entry.name}: version {model.version} is not in the catalogue, which knows "
                f"{', '.join(entry.versions)}; the service decides."
            )
        (refusals if retirement_refuses else warnings).extend(retirement(entry, today))
    return Limits(
        target=target,
        model=entry,
        honoured=frozenset(KNOBS) - LOCAL_ONLY,
        choices=_HOSTED_CHOICES,
        bounds=entry.bounds if entry else {},
        min_rows=1,
        needs_output_name=True,
        region=region,
        refusals=tuple(refusals),
        warnings=tuple(warnings),
        hosts=True,
    )


def unknown_model(name: str) -> str:
    """Why a model that has no entry is refused, with the next step."""
    if (outsider := find_outsider(name)) is not None:
        return _outside(outsider)
    return f"{name} is not a model of the catalogue. Known: {', '.join(catalog())}."


def _outside(outsider: Outsider) -> str:
    return f"{outsider.name} is not done here: {outsider.why}. {outsider.instead}"


def retirement(entry: ModelEntry | None, today: dt.date) -> tuple[str, ...]:
    """What is to be said of a model that the service has retired; nothing of the others."""
    if entry is None or not entry.is_retired(today):
        return ()
    instead = f"; use {entry.replacement} instead." if entry.replacement else "."
    return (f"{entry.name} was retired on {entry.retired}{instead}",)


def _is_doubtful(entry: ModelEntry, model: ModelInput) -> bool:
    """Whether the job's version is unknown where the catalogue's versions are not sure either."""
    unknown = model.version is not None and model.version not in entry.versions
    return unknown and "versions" in entry.unverified


def _model_refusals(
    entry: ModelEntry, model: ModelInput, region: str | None, *, managed_compute: bool
) -> list[str]:
    refusals = []
    known = model.version is None or model.version in entry.versions
    if not known and not _is_doubtful(entry, model):
        refusals.append(
            f"{entry.name} has no version {model.version} that can be tuned; versions: "
            f"{', '.join(entry.versions)}."
        )
    if not (entry.serverless or entry.managed):
        refusals.append(
            f"{entry.name} is not fine-tuned by the service. Train it with --target local."
        )
    elif managed_compute and not entry.managed:
        refusals.append(
            f"{entry.name} is not fine-tuned on managed compute; take the compute out of the job."
        )
    elif not managed_compute and not entry.serverless:
        refusals.append(
            f"{entry.name}: Serverless FineTuning not supported. It is tuned on managed compute: give "
            "the job a compute or resources.instance_types."
        )
    elif not managed_compute and region is not None and region not in entry.tuning_regions:
        refusals.append(
            f"{entry.name}: Serverless FineTuning not supported in {region}. Supported: "
            f"{', '.join(entry.tuning_regions)}."
        )
    return refusals
