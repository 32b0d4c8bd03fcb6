"""Hyperparameters as a target takes them: each with its value, where it came from, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from maas_client.spec.hyperparameters import KNOBS, Value, read
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits

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
    if choices and as_text(value) not in choices:
        note = f"{limits.target} does not do the default {as_text(value)}"
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
    if choices and as_text(value) not in choices:
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


def as_text(value: Value) -> str:
    """A value as a job file says it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
