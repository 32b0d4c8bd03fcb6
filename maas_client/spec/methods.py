"""The methods of training by peft's names: which knobs each has, and what does not go together here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maas_client.spec.hyperparameters import KNOBS, Value, read


@dataclass(frozen=True, slots=True)
class Method:
    """One way of training."""

    words: str
    knobs: frozenset[str] = frozenset()
    """Those of the adapter's knobs that it has."""
    merges: bool = True
    """Whether what was trained can be put into the base's own matrices."""


_LORA = frozenset(
    {"lora_r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "init_lora_weights"}
)

METHODS: Mapping[str, Method] = {
    "lora": Method("a low-rank product beside each projection", _LORA),
    "dora": Method("LoRA with the length of each row trained apart", _LORA),
    "ia3": Method("a factor for each value and each feed-forward feature"),
    "prefix_tuning": Method(
        "keys and values before every text", frozenset({"num_virtual_tokens"}), merges=False
    ),
    "prompt_tuning": Method(
        "embeddings before every text", frozenset({"num_virtual_tokens"}), merges=False
    ),
    "vera": Method("factors of one random low-rank pair", frozenset({"lora_r", "lora_dropout"})),
    "oft": Method(
        "a rotation before each projection", frozenset({"oft_block_size", "lora_dropout"})
    ),
    "full": Method("every weight of the model"),
}

_KNOBS_OF_METHODS = frozenset(knob for method in METHODS.values() for knob in method.knobs)
_FOUR_BIT = frozenset({"bnb_4bit_quant_type", "bnb_4bit_use_double_quant"})
_ADAM = frozenset({"adam_beta1", "adam_beta2", "adam_epsilon"})
_CHANGE_THE_BASE = ("pissa", "olora")
"""Starts that take from the base what they put into the adapter."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a job's hyperparameters mean for a local run."""

    method: str
    unused: Mapping[str, str]
    """Knob -> why this job has none of it."""
    refused: Mapping[str, str]
    """Knob -> why its value does not go with the others, and what to write."""


def method_of(values: Mapping[str, Any]) -> str:
    """The method that resolved hyperparameters name.

    `peft_method` decides where it is set; else `use_dora`, and at last Azure's `apply_lora`.
    """
    named = values.get("peft_method")
    if named not in (None, "lora"):
        return str(named)
    if values.get("use_dora"):
        return "dora"
    return "lora" if named or values.get("apply_lora", True) else "full"


def is_quantized(values: Mapping[str, Any]) -> bool:
    """Whether the frozen base is held in 4 or 8 bits."""
    return bool(values.get("load_in_4bit") or values.get("load_in_8bit"))


def read_together(
    given: Mapping[str, str | None],
    defaults: Mapping[str, str],
    *,
    missing: frozenset[str] = frozenset(),
) -> Reading:
    """Read a job's hyperparameters against each other.

    Args:
        given: those of the job file, each of which can be read.
        defaults: the model's.
        missing: packages that are not installed.
    """
    written = {
        key: read(KNOBS[key], text)
        for key, text in given.items()
        if text is not None and key in KNOBS
    }
    values: dict[str, Value | None] = {
        **{key: knob.default for key, knob in KNOBS.items()},
        **{key: read(KNOBS[key], text) for key, text in defaults.items() if key in KNOBS},
        **written,
    }
    method = method_of(values)
    faults = {
        **_method_faults(method, written),
        **_start_faults(method, values),
        **_precision_faults(method, values, missing),
        **_end_faults(method, values),
    }
    return Reading(
        method,
        _unused(method, values),
        {key: words for key, words in faults.items() if key in written},
    )


def _unused(method: str, values: Mapping[str, Value | None]) -> dict[str, str]:
    unused = dict.fromkeys(
        _KNOBS_OF_METHODS - METHODS[method].knobs - {"use_dora"}, f"{method} has none"
    )
    if not values["load_in_4bit"]:
        unused |= dict.fromkeys(_FOUR_BIT, "it is of load_in_4bit, which is off")
    if values["optim"] in ("sgd", "adafactor"):
        unused |= dict.fromkeys(_ADAM, f"{values['optim']} has none")
    if method == "full":
        unused["merge_lora_weights"] = "full training leaves the whole model anyway"
    return unused


def _method_faults(method: str, written: Mapping[str, Value]) -> dict[str, str]:
    faults = {}
    adapts = method != "full"
    if "peft_method" in written and written.get("apply_lora", adapts) is not adapts:
        meant = "true" if adapts else "false"
        faults["apply_lora"] = f"it says the opposite of peft_method {method}; write {meant}"
    if written.get("use_dora") and method != "dora":
        faults["use_dora"] = f"it does not go with peft_method {method}; remove one of the two"
    if written.get("use_dora") is False and method == "dora":
        faults["use_dora"] = "false says the opposite of peft_method dora; remove one of the two"
    return faults


def _start_faults(method: str, values: Mapping[str, Value | None]) -> dict[str, str]:
    start = str(values["init_lora_weights"])
    if method not in ("lora", "dora"):
        return {}
    if start == "loftq":
        words = (
            "loftq leaves an adapter that fits no base but its own 4-bit one, and peft's needs CUDA; "
            "use pissa, or load_in_4bit with init_lora_weights true"
        )
        return {"init_lora_weights": words}
    if start.startswith(_CHANGE_THE_BASE) and is_quantized(values):
        words = (
            f"{start} needs the base's own weights, and 4 or 8 bits are not; use true or gaussian"
        )
        return {"init_lora_weights": words}
    if start.startswith(_CHANGE_THE_BASE) and method == "dora":
        words = f"{start} with DoRA cannot be written as an adapter of the plain base; use true"
        return {"init_lora_weights": words}
    return {}


def _precision_faults(
    method: str, values: Mapping[str, Value | None], missing: frozenset[str]
) -> dict[str, str]:
    faults = {}
    if values["precision"] == "16":
        faults["precision"] = (
            "16 is not done by local: fp16 overflows and is slow on a CPU; write bf16, or 32"
        )
    if values["load_in_4bit"] and values["load_in_8bit"]:
        faults["load_in_8bit"] = "load_in_4bit is on as well; remove one of the two"
    for key in ("load_in_4bit", "load_in_8bit"):
        if not values[key]:
            continue
        if method == "full":
            faults[key] = "rounded weights cannot be trained; use peft_method lora, or remove it"
        elif "bitsandbytes" in missing:
            faults[key] = 'it needs bitsandbytes; pip install "maas-finetune[qlora]"'
    if values["optim"] == "adamw_bnb_8bit" and "bitsandbytes" in missing:
        faults["optim"] = 'it needs bitsandbytes; pip install "maas-finetune[qlora]"'
    return faults


def _end_faults(method: str, values: Mapping[str, Value | None]) -> dict[str, str]:
    faults = {}
    if values["merge_lora_weights"] and not METHODS[method].merges:
        faults["merge_lora_weights"] = f"{method} is no part of the base's matrices; remove it"
    if values["evaluation_strategy"] == "disable":
        words = "nothing is evaluated; set evaluation_strategy to epoch or steps"
        faults |= {
            key: words for key in ("load_best_model_at_end", "apply_early_stopping") if values[key]
        }
    return faults
