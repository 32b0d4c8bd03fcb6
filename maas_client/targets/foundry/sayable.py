"""What a job file can say on this wire, and the nearest to what it cannot. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction

from maas_client.plan import resolve
from maas_client.spec.catalog import ModelEntry, find_model
from maas_client.spec.hyperparameters import KNOBS, Value
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits, retirement, unknown_model
from maas_client.targets.foundry.words import (
    KEY,
    NAME,
    SAID,
    batch,
    default_rate,
    metadata,
    multiplier,
)

MIN_ROWS = 10
"""Fewer examples are refused by every service of this wire."""

_MOST_EPOCHS, _MOST_ROWS, _MOST_RATE = 50, 256, 5
_BATCH_KNOBS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_RATE_KNOBS = ("learning_rate", "learning_rate_multiplier")

_BATCH = "per_device_train_batch_size and gradient_accumulation_steps say the batch size"
_RATE = "learning_rate and learning_rate_multiplier say how far a step goes"
_LENGTH = "num_train_epochs says how long to train"
_NEAREST: Mapping[str, str] = {
    "max_steps": _LENGTH,
    "apply_early_stopping": _LENGTH,
    "early_stopping_patience": _LENGTH,
    "early_stopping_threshold": _LENGTH,
    "batch_size_multiplier": _BATCH,
    "auto_find_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "lr_scheduler_type": _RATE,
    "warmup_steps": _RATE,
    "warmup_ratio": _RATE,
    "weight_decay": _RATE,
    "max_grad_norm": _RATE,
    "optim": _RATE,
    "adam_beta1": _RATE,
    "adam_beta2": _RATE,
    "adam_epsilon": _RATE,
    "lora_alpha": f"the service chooses the adapter's scale; {_RATE}",
    "enable_full_determinism": "seed is what it takes",
    "save_strategy": "it keeps a checkpoint after each epoch, the last three",
    "save_steps": "it keeps a checkpoint after each epoch, the last three",
    "save_total_limit": "it keeps a checkpoint after each epoch, the last three",
    "resume_from_checkpoint": "`maas jobs pause` and `maas jobs resume` are what it has",
}
_NO_NEAREST = f"the service decides; {', '.join(SAID)} are what it takes"

_JOB_KEYS: Mapping[str, str] = {
    "compute": "the service brings its own machines",
    "resources": "the service brings its own machines",
    "queue_settings": "the service has one queue",
    "identity": "the job runs as the resource",
    "properties": "tags are sent, as metadata",
}
"""Keys of a job file that cannot be said, and why or what can."""

_METADATA = {"pairs": 16, "key": 64, "value": 512}


def limits(job: FineTuningJob, *, target: str, azure: bool, today: dt.date) -> Limits:
    """What can be said of this job on this wire, and how.

    Args:
        job: what the user wants.
        target: the target's name.
        azure: whether it is Azure's form of the wire, whose suffixes are shorter.
        today: the day that retirement is judged by.
    """
    entry = find_model(job.model.asset_name)
    refused = {key: _nearest(key) for key in KNOBS if key not in SAID}
    said: dict[str, str] = {}
    known = Limits(target=target, model=entry, honoured=frozenset(SAID))
    values = {found.key: found.value for found in resolve(job, known)}
    for key, (text, fault) in _sayings(values, entry).items():
        (refused if fault else said)[key] = text
    return Limits(
        target=target,
        model=entry,
        honoured=frozenset(SAID),
        refused=refused,
        said=said,
        bounds=entry.bounds if entry else {},
        tasks=("chat_completion",),
        min_rows=MIN_ROWS,
        needs_local_data=True,
        refusals=tuple(_refusals(job, entry, suffix=18 if azure else 64)),
        warnings=(*_warnings(job), *retirement(entry, today)),
        hosts=True,
    )


def _nearest(key: str) -> str:
    return f"it cannot be said to this service: {_NEAREST.get(key, _NO_NEAREST)}; remove it"


def _sayings(
    values: Mapping[str, Value | None], entry: ModelEntry | None
) -> dict[str, tuple[str, bool]]:
    """Knob -> how its value is said; or why it cannot be, and True."""
    epochs = float(values["num_train_epochs"] or 1)
    rows, rate = batch(values), multiplier(values, entry)
    said = {
        "num_train_epochs": (f"said as n_epochs {epochs:g}", False),
        "per_device_train_batch_size": (f"said as batch_size {rows}", False),
        "gradient_accumulation_steps": (f"said as batch_size {rows}", False),
        "seed": ("", False),
    }
    if not epochs.is_integer() or epochs > _MOST_EPOCHS:
        near = min(max(1, round(epochs)), _MOST_EPOCHS)
        said["num_train_epochs"] = (
            f"n_epochs is a whole number from 1 to {_MOST_EPOCHS}; {near} is the nearest",
            True,
        )
    if rows > _MOST_ROWS:
        text = f"batch_size would be {rows}; {_MOST_ROWS} is the most"
        said |= dict.fromkeys(_BATCH_KNOBS, (text, True))
    said |= dict.fromkeys(_RATE_KNOBS, _rate_saying(rate, default_rate(entry)))
    return said


def _rate_saying(rate: Fraction, default: float) -> tuple[str, bool]:
    if not 0 < rate <= _MOST_RATE:
        return (
            f"learning_rate_multiplier would be {float(rate):g}; it is above 0 and at most "
            f"{_MOST_RATE}, so {_MOST_RATE * default:g} is the highest learning_rate",
            True,
        )
    if Fraction(Decimal(repr(float(rate)))) == rate:
        return f"said as learning_rate_multiplier {float(rate):g} of the model's {default:g}", False
    return (
        f"it is said as a multiple of the model's {default:g}, and {float(rate)!r} is not exact; "
        f"{_round(float(rate)) * default:g} is the nearest, or say learning_rate_multiplier alone",
        True,
    )


def _round(rate: float) -> float:
    """Three significant digits."""
    return float(f"{rate:.3g}")


def _refusals(job: FineTuningJob, entry: ModelEntry | None, *, suffix: int) -> Iterable[str]:
    if entry is None:
        yield unknown_model(job.model.asset_name)
    for key, instead in _JOB_KEYS.items():
        if getattr(job, key):
            yield f"{key} cannot be said to this service: {instead}; remove it."
    if extra := sorted(set(job.outputs) - {"registered_model"}):
        yield f"outputs.{extra[0]} cannot be said to this service: registered_model is."
    if job.registered_model and len(job.registered_model) > suffix:
        yield (
            f"outputs.registered_model.name has {len(job.registered_model)} characters; it is said "
            f"as suffix, which has at most {suffix}."
        )
    yield from _metadata_refusals(job)


def _metadata_refusals(job: FineTuningJob) -> Iterable[str]:
    said = metadata(
        job,
        key="x",
    ) | {NAME: "x"}
    most = _METADATA
    if len(said) > most["pairs"]:
        yield f"tags and names are said as metadata, {len(said)} pairs; at most {most['pairs']} go."
    for key, value in said.items():
        if len(key) > most["key"] or len(value) > most["value"]:
            yield (
                f"{key[:40]} is said as metadata: a key has at most {most['key']} characters, a "
                f"value {most['value']}."
            )
    if taken := sorted({KEY, NAME, "display_name", "description"} & set(job.tags)):
        yield f"tags.{taken[0]} is a name that the metadata needs; rename the tag."


def _warnings(job: FineTuningJob) -> Iterable[str]:
    if job.model.version is not None:
        yield (
            f"The version ({job.model.version}) cannot be said to this service: it tunes the one that "
            f"it calls {job.model.asset_name}."
        )
