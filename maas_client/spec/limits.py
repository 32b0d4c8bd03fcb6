"""What a target accepts for a model, as data. Deciding is `plan.make_plan`'s, and is pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

from maas_client.spec import dataset
from maas_client.spec.catalog import ModelEntry, catalog, find_model
from maas_client.spec.hyperparameters import KNOBS
from maas_client.spec.job import ModelInput
from maas_client.spec.tables import FORMATS
from maas_client.spec.tasks import TASKS

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
        "use_rslora",
        "precision",
        "auto_find_batch_size",
        "resume_from_checkpoint",
        "load_best_model_at_end",
        "metric_for_best_model",
        "peft_method",
        "use_dora",
        "init_lora_weights",
        "num_virtual_tokens",
        "oft_block_size",
        "load_in_4bit",
        "load_in_8bit",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
    }
)
"""What the local runner does exactly."""

_ONE_PROCESS = "one process on a CPU needs none, and the result does not depend on it"
RUNNER_IGNORES: Mapping[str, str] = {
    "apply_deepspeed": _ONE_PROCESS,
    "deepspeed_stage": _ONE_PROCESS,
    "apply_ort": "the kernels are PyTorch's; the result does not depend on it",
}
"""What changes how a run is carried out, not its result: accepted, shown, and not done."""

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
    }
)
"""peft's and Hugging Face's names that the hosted components do not have."""

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


def local_limits(model: ModelInput, *, target: str = "local") -> Limits:
    """What the local runner accepts."""
    entry = find_model(model.asset_name)
    refusals: tuple[str, ...] = ()
    if entry is not None and entry.architecture != "phi3":
        refusals = (f"{entry.name} has an architecture that the local runner cannot train yet.",)
    return Limits(
        target=target,
        model=entry,
        honoured=RUNNER_HONOURS,
        ignored=RUNNER_IGNORES,
        choices=RUNNER_CHOICES,
        tasks=tuple(TASKS),
        formats=FORMATS,
        needs_local_data=True,
        refusals=refusals,
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
        refusals.append(
            f"{model.asset_name} is not a model of the catalogue. Known: {', '.join(catalog())}."
        )
    else:
        refusals += _model_refusals(entry, model, region, managed_compute=managed_compute)
        if entry.is_retired(today):
            text = f"{entry.name} was retired on {entry.retired}; use {entry.replacement} instead."
            (refusals if retirement_refuses else warnings).append(text)
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


def _model_refusals(
    entry: ModelEntry, model: ModelInput, region: str | None, *, managed_compute: bool
) -> list[str]:
    refusals = []
    if model.version is not None and model.version not in entry.versions:
        refusals.append(
            f"{entry.name} has no version {model.version} that can be tuned; versions: "
            f"{', '.join(entry.versions)}."
        )
    if not managed_compute and not entry.serverless:
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
