"""OpenAI's hyperparameters and our knobs: one table, read in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from local_runner.mock_server.openai.access import invalid

AUTO = "auto"
_LARGEST_AUTO_BATCH = 256


@dataclass(frozen=True, slots=True)
class _Knob:
    """A hyperparameter of theirs."""

    ours: str
    whole: bool
    low: float
    high: float
    low_open: bool = False


_TABLE: Mapping[str, _Knob] = {
    "n_epochs": _Knob("num_train_epochs", whole=True, low=1, high=50),
    "batch_size": _Knob("per_device_train_batch_size", whole=True, low=1, high=256),
    "learning_rate_multiplier": _Knob(
        "learning_rate_multiplier", whole=False, low=0, high=5, low_open=True
    ),
}
_ALWAYS = {
    # Every step is an event, and every epoch a checkpoint.
    "logging_steps": "1",
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
}


def checked(given: Any, *, where: str) -> dict[str, Any]:
    """The hyperparameters of a request, what is not said as `auto`.

    Raises:
        ServiceError: one is unknown, or has a value that the service does not take.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise invalid(f"{where} must be an object.", param=where, code="invalid_type")
    for key in given:
        if key not in _TABLE:
            raise invalid(
                f"Unrecognized hyperparameter: {key[:50]!r}. There are {', '.join(_TABLE)}.",
                param=f"{where}.{key[:50]}",
                code="unknown_parameter",
            )
    return {key: _value(given.get(key), knob, f"{where}.{key}") for key, knob in _TABLE.items()}


def resolved(wanted: Mapping[str, Any], *, rows: int) -> dict[str, Any]:
    """The same, with a number for each `auto`."""
    automatic = {
        "n_epochs": 3,
        # The documented rule: about 0.2 % of the examples.
        "batch_size": max(1, min(_LARGEST_AUTO_BATCH, round(rows * 0.002))),
        "learning_rate_multiplier": 1.0,
    }
    return {key: automatic[key] if value == AUTO else value for key, value in wanted.items()}


def in_our_words(values: Mapping[str, Any], *, seed: int) -> dict[str, str]:
    """A job file's hyperparameters."""
    words = {_TABLE[key].ours: str(value) for key, value in values.items()}
    return {**words, **_ALWAYS, "seed": str(seed)}


def _value(value: Any, knob: _Knob, where: str) -> Any:
    if value in (None, AUTO):
        return AUTO
    kinds = int if knob.whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        kind = "a whole number" if knob.whole else "a number"
        raise invalid(f"{where} must be 'auto' or {kind}.", param=where, code="invalid_type")
    if not knob.low <= value <= knob.high or (knob.low_open and value == knob.low):
        above = "above" if knob.low_open else "from"
        raise invalid(
            f"{where} is {value}; it must be {above} {knob.low:g} to {knob.high:g}.",
            param=where,
            code="invalid_hyperparameter",
        )
    return value
