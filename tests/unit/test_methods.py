"""Which method a job means, and what the plan says of knobs that do not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from maas_client.errors import PlanError
from maas_client.plan import DataPlan, Plan, make_plan, resolve
from maas_client.spec.dataset import check
from maas_client.spec.limits import hosted_limits, local_limits
from maas_client.spec.loading import parse_job
from maas_client.spec.methods import METHODS, method_of
from tests.conftest import JOB
from tests.unit.test_plan import TODAY


def plan(folder: Path, *, missing: frozenset[str] = frozenset(), **knobs: str) -> Plan:
    job = parse_job(JOB).model_copy(update={"hyperparameters": knobs})
    file = folder / "train.jsonl"
    limits = local_limits(job.model, hyperparameters=knobs, missing=missing)
    return make_plan(job, limits, training=DataPlan(str(file), check(file, job.task)))


@pytest.mark.parametrize(
    ("knobs", "method"),
    [
        ({}, "lora"),
        ({"apply_lora": "false"}, "full"),
        ({"use_dora": "true"}, "dora"),
        ({"peft_method": "lora", "use_dora": "true"}, "dora"),
        ({"peft_method": "full"}, "full"),
        *(({"peft_method": name}, name) for name in METHODS),
    ],
)
def test_a_job_means_one_method(job_folder: Path, knobs: dict[str, str], method: str) -> None:
    assert method_of(plan(job_folder, **knobs).values) == method


def test_a_models_own_default_of_full_training_is_kept_and_a_named_method_beats_it() -> None:
    for knobs, method in (({}, "full"), ({"peft_method": "lora"}, "lora")):
        job = parse_job(JOB.replace("Phi-3-mini-4k", "Phi-3-medium-4k").replace("/15", "/6"))
        job = job.model_copy(update={"hyperparameters": knobs})
        limits = local_limits(job.model, hyperparameters=knobs)
        assert "lora_r" in limits.honoured or method == "full"
        values = {entry.key: entry.value for entry in resolve(job, limits)}
        assert method_of(values) == method


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"peft_method": "ia3", "apply_lora": "false"}, "opposite of peft_method ia3"),
        ({"peft_method": "full", "apply_lora": "true"}, "write false"),
        ({"peft_method": "vera", "use_dora": "true"}, "does not go with peft_method vera"),
        ({"peft_method": "dora", "use_dora": "false"}, "opposite of peft_method dora"),
        ({"init_lora_weights": "loftq"}, "loftq leaves an adapter that fits no base but its own"),
        ({"init_lora_weights": "pissa", "load_in_4bit": "true"}, "pissa needs the base's own"),
        ({"init_lora_weights": "olora", "use_dora": "true"}, "olora with DoRA"),
        ({"load_in_4bit": "true", "load_in_8bit": "true"}, "load_in_4bit is on as well"),
        ({"load_in_4bit": "true", "apply_lora": "false"}, "rounded weights cannot be trained"),
        ({"precision": "16"}, "write bf16, or 32"),
        ({"peft_method": "prefix_tuning", "merge_lora_weights": "true"}, "no part of the base's"),
        (
            {"load_best_model_at_end": "true", "evaluation_strategy": "disable"},
            "nothing is evaluated",
        ),
        ({"packing": "true"}, "does not have it"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_does_not_go_together_is_refused_with_what_to_write(
    job_folder: Path, knobs: dict[str, str], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        plan(job_folder, **knobs)


@pytest.mark.parametrize(
    "knobs", [{"load_in_4bit": "true"}, {"load_in_8bit": "true"}, {"optim": "adamw_bnb_8bit"}]
)
def test_a_missing_package_is_named_before_anything_starts(
    job_folder: Path, knobs: dict[str, str]
) -> None:
    with pytest.raises(PlanError, match=r"maas-finetune\[qlora\]"):
        plan(job_folder, missing=frozenset({"bitsandbytes"}), **knobs)
    plan(job_folder, missing=frozenset({"bitsandbytes"}))


@pytest.mark.parametrize(
    ("knobs", "key", "why"),
    [
        ({"peft_method": "ia3", "lora_r": "4"}, "lora_r", "ia3 has none"),
        ({"num_virtual_tokens": "4"}, "num_virtual_tokens", "lora has none"),
        ({"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type", "load_in_4bit, which is off"),
        ({"optim": "sgd", "adam_beta1": "0.5"}, "adam_beta1", "sgd has none"),
        (
            {"apply_lora": "false", "merge_lora_weights": "true"},
            "merge_lora_weights",
            "leaves the whole model",
        ),
    ],
)
def test_what_the_method_does_not_have_is_ignored_and_said(
    job_folder: Path, knobs: dict[str, str], key: str, why: str
) -> None:
    made = plan(job_folder, **knobs)
    assert key not in made.values
    assert any(key in warning and why in warning for warning in made.warnings)


def test_a_plan_names_no_knob_that_its_method_lacks(job_folder: Path) -> None:
    values = plan(job_folder, peft_method="ia3").values
    assert not {"lora_r", "lora_alpha", "num_virtual_tokens", "oft_block_size"} & values.keys()
    assert "bnb_4bit_quant_type" not in values


def test_the_service_takes_none_of_it() -> None:
    for knobs, words in (
        ({"peft_method": "lora"}, "azure does not have it"),
        ({"resume_from_checkpoint": "runs/one"}, "it does true | false"),
    ):
        job = parse_job(JOB).model_copy(update={"hyperparameters": knobs})
        limits = hosted_limits(
            job.model, target="azure", managed_compute=False, region="eastus2", today=TODAY
        )
        with pytest.raises(PlanError) as caught:
            make_plan(job, limits, training=DataPlan("azureml:rows:1"))
        assert words in str(caught.value)
