"""A plan as Kaito's training_config.yaml: one table from our knobs to the keys of its six sections. Pure.

Source: Kaito's own tuning program and its default ConfigMaps, v0.12.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import yaml

from maas_client.errors import PlanError
from maas_client.plan import Plan, batch_size, learning_rate
from maas_client.spec.catalog import find_model
from maas_client.spec.hyperparameters import Value

Values = Mapping[str, Value | None]
Method = Literal["lora", "qlora"]

FILE = "training_config.yaml"
"""The key of the ConfigMap that Kaito reads."""

RESULTS = "/mnt/results"
"""Where the output volume is mounted, or the results that are pushed as an image are gathered."""

_ARGUMENTS = "TrainingArguments"
_DTYPES = {"32": "float32", "bf16": "bfloat16"}
PRECISIONS = ("bf16", "32")
"""16 is left out: float16 weights would be trained without scaled losses."""

KEYS: Mapping[str, tuple[str, str]] = {
    "num_train_epochs": (_ARGUMENTS, "num_train_epochs"),
    "max_steps": (_ARGUMENTS, "max_steps"),
    "per_device_train_batch_size": (_ARGUMENTS, "per_device_train_batch_size"),
    "batch_size_multiplier": (_ARGUMENTS, "per_device_train_batch_size"),
    "auto_find_batch_size": (_ARGUMENTS, "auto_find_batch_size"),
    "gradient_accumulation_steps": (_ARGUMENTS, "gradient_accumulation_steps"),
    "learning_rate": (_ARGUMENTS, "learning_rate"),
    "learning_rate_multiplier": (_ARGUMENTS, "learning_rate"),
    "lr_scheduler_type": (_ARGUMENTS, "lr_scheduler_type"),
    "warmup_steps": (_ARGUMENTS, "warmup_steps"),
    "warmup_ratio": (_ARGUMENTS, "warmup_ratio"),
    "weight_decay": (_ARGUMENTS, "weight_decay"),
    "max_grad_norm": (_ARGUMENTS, "max_grad_norm"),
    "optim": (_ARGUMENTS, "optim"),
    "adam_beta1": (_ARGUMENTS, "adam_beta1"),
    "adam_beta2": (_ARGUMENTS, "adam_beta2"),
    "adam_epsilon": (_ARGUMENTS, "adam_epsilon"),
    "seed": (_ARGUMENTS, "seed"),
    "enable_full_determinism": (_ARGUMENTS, "full_determinism"),
    "logging_steps": (_ARGUMENTS, "logging_steps"),
    "save_strategy": (_ARGUMENTS, "save_strategy"),
    "save_steps": (_ARGUMENTS, "save_steps"),
    "save_total_limit": (_ARGUMENTS, "save_total_limit"),
    "lora_r": ("LoraConfig", "r"),
    "lora_alpha": ("LoraConfig", "lora_alpha"),
    "lora_dropout": ("LoraConfig", "lora_dropout"),
    "precision": ("ModelConfig", "torch_dtype"),
    "load_in_4bit": ("QuantizationConfig", "load_in_4bit"),
    "bnb_4bit_quant_type": ("QuantizationConfig", "bnb_4bit_quant_type"),
}
"""Our knob -> Kaito's section and key. Other knobs cannot be said."""

_SAID: Mapping[str, Callable[[Values], object]] = {
    "per_device_train_batch_size": batch_size,
    "batch_size_multiplier": batch_size,
    "learning_rate": learning_rate,
    "learning_rate_multiplier": learning_rate,
    "precision": lambda values: _DTYPES[str(values["precision"])],
    "save_strategy": lambda values: str(values["save_strategy"]).replace("disable", "no"),
}
"""Knobs whose value is said otherwise than it is written; -1 for `keep all` is left out."""

_ONLY_4BIT = frozenset({"bnb_4bit_quant_type"})


def method(values: Values) -> Method:
    """Kaito has two; LoRA on a base in 4 bits is the other one."""
    return "qlora" if values.get("load_in_4bit") else "lora"


def training_config(plan: Plan, *, dataset: str | None) -> dict[str, Any]:
    """What Kaito's tuning program reads.

    Args:
        plan: what the target has agreed to.
        dataset: the file with the rows, below /mnt; None lets the program find it.

    Raises:
        PlanError: the model is unknown, so nobody can say which modules to train.
    """
    entry = find_model(plan.job.model.asset_name)
    if entry is None:
        raise PlanError(f"{plan.job.model.asset_name} is not a model of the catalogue")
    sections = _fixed(dataset)
    values = plan.values
    for knob, (section, key) in KEYS.items():
        value = values.get(knob)
        absent = value is None or (knob == "save_total_limit" and value == -1)
        if absent or (knob in _ONLY_4BIT and method(values) == "lora"):
            continue
        sections[section][key] = _SAID[knob](values) if knob in _SAID else value
    # Kaito's own default for Phi-3 are the names of split projections; on Phi-3's fused ones they
    # train half of the adapter, and say nothing.
    sections["LoraConfig"]["target_modules"] = list(entry.lora_targets)
    if method(values) == "qlora":
        sections["QuantizationConfig"] |= {
            "bnb_4bit_compute_dtype": sections["ModelConfig"]["torch_dtype"],
            "bnb_4bit_use_double_quant": True,
        }
    return {"training_config": sections}


def dump(config: Mapping[str, Any]) -> str:
    """As text. Numbers are written so that YAML 1.1 reads numbers: `5e-06` would be a string to it."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _fixed(dataset: str | None) -> dict[str, dict[str, Any]]:
    """What is the same for every job."""
    return {
        "ModelConfig": {"local_files_only": True, "device_map": "auto"},
        "QuantizationConfig": {},
        "LoraConfig": {},
        _ARGUMENTS: {"output_dir": RESULTS, "ddp_find_unused_parameters": False},
        "DatasetConfig": {
            **({"dataset_path": dataset} if dataset else {}),
            "dataset_extension": "json",
            "messages_column": "messages",
            # Kaito shuffles without a seed; the trainer shuffles by the job's.
            "shuffle_dataset": False,
            "train_test_split": 1,
        },
        # Kaito's default is true, which no Phi can do.
        "DataCollator": {"mlm": False},
    }


class _Dumper(yaml.SafeDumper):
    """YAML as kubectl and Go's parser read it."""


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e", 1)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(float, _number)
_Dumper.add_representer(str, _text)
