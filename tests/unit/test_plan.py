"""Planning: precedence, refusals, warnings, and the steps that will run."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from maas_client.errors import PlanError
from maas_client.plan import (
    BaseInfo,
    DataPlan,
    Plan,
    TokenCount,
    batch_size,
    count_steps,
    learning_rate,
    make_plan,
    plan_from_json,
    resolve,
)
from maas_client.spec.dataset import check
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits, hosted_limits, local_limits
from maas_client.spec.loading import parse_job
from tests.conftest import JOB

TODAY = dt.date(2025, 6, 1)


def job_with(**hyperparameters: str) -> FineTuningJob:
    return parse_job(JOB).model_copy(update={"hyperparameters": hyperparameters})


def hosted(
    job: FineTuningJob, *, region: str = "eastus2", today: dt.date = TODAY, refuses: bool = False
) -> Limits:
    return hosted_limits(
        job.model,
        target="azure",
        managed_compute=job.managed_compute,
        region=region,
        today=today,
        retirement_refuses=refuses,
    )


def reasons(job: FineTuningJob, limits: Limits) -> str:
    with pytest.raises(PlanError) as caught:
        make_plan(job, limits, training=DataPlan("azureml:rows:1"))
    return str(caught.value)


def test_the_job_file_beats_the_models_defaults_and_those_beat_the_components() -> None:
    job = job_with(learning_rate="4e-5")
    found = {entry.key: entry for entry in resolve(job, hosted(job))}
    assert (found["learning_rate"].value, found["learning_rate"].source) == (4e-5, "job file")
    assert (found["lr_scheduler_type"].value, found["lr_scheduler_type"].source) == (
        "cosine",
        "model default",
    )
    assert (found["lora_alpha"].value, found["lora_alpha"].source) == (128, "component default")


def test_precedence_is_the_same_on_every_target() -> None:
    job = job_with(learning_rate="4e-5", lora_r="4")
    here = {
        entry.key: entry.value
        for entry in resolve(job, local_limits(job.model))
        if entry.source != "target"
    }
    there = {entry.key: entry.value for entry in resolve(job, hosted(job))}
    shared = here.keys() & there.keys()
    assert {"learning_rate", "lora_r", "num_train_epochs", "lr_scheduler_type", "seed"} <= shared
    assert {key: here[key] for key in shared} == {key: there[key] for key in shared}


def test_a_value_the_service_does_not_take_never_leaves_the_house() -> None:
    job = job_with(learning_rate="0.001")
    text = reasons(job, hosted(job))
    assert "hyperparameters.learning_rate: 0.001 is outside 5e-07 to 5e-05" in text


def test_what_only_a_local_run_can_do_is_refused_for_the_service() -> None:
    job = job_with(use_rslora="true")
    assert "azure does not have it" in reasons(job, hosted(job))
    assert {e.key: e.treatment for e in resolve(job, local_limits(job.model))}[
        "use_rslora"
    ] == "given"


def test_what_changes_nothing_here_is_ignored_and_said(job_folder: Path) -> None:
    plan = local_plan(job_folder, job_with(apply_deepspeed="true"))
    assert plan.values.get("apply_deepspeed") is None
    assert any("apply_deepspeed" in warning for warning in plan.warnings)


def test_what_the_runner_cannot_do_is_refused_when_asked_for(job_folder: Path) -> None:
    with pytest.raises(PlanError, match="precision: 16 is not done by local"):
        local_plan(job_folder, job_with(precision="16"))


def test_a_default_the_runner_cannot_do_is_replaced_and_said(job_folder: Path) -> None:
    plan = local_plan(job_folder, job_with())
    assert plan.values["precision"] == "32"
    assert "precision: local does not do the default 16; 32 is used." in plan.warnings


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"region": "westus"}, "Serverless FineTuning not supported in westus"),
        ({"today": dt.date(2025, 8, 30), "refuses": True}, "retired on 2025-08-30"),
    ],
)
def test_the_services_refusals_are_known_before_submission(
    change: dict[str, object], word: str
) -> None:
    job = job_with()
    assert word in reasons(job, hosted(job, **change))  # type: ignore[arg-type]


def test_a_retired_model_is_a_warning_where_the_service_decides() -> None:
    job = job_with()
    plan = make_plan(
        job, hosted(job, today=dt.date(2026, 1, 1)), training=DataPlan("azureml:rows:1")
    )
    assert any("Phi-4-mini-instruct" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (
            "azureml://registries/azureml/models/Phi-3-small-8k-instruct/versions/6",
            "managed compute",
        ),
        ("azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/99", "no version 99"),
        (
            "azureml://registries/azureml/models/Llama-2-7b/versions/1",
            "not a model of the catalogue",
        ),
    ],
)
def test_a_model_that_cannot_be_tuned_is_refused(model: str, word: str) -> None:
    job = job_with()
    other = job.model_copy(update={"model": job.model.model_copy(update={"path": model})})
    assert word in reasons(other, hosted(other))


def test_every_reason_is_given_at_once() -> None:
    job = job_with(learning_rate="1", use_rslora="true").model_copy(
        update={"outputs": {}, "task": "text_translation"}
    )
    with pytest.raises(PlanError) as caught:
        make_plan(job, hosted(job), training=DataPlan("azureml:rows:1"))
    assert len(caught.value.problems) == 4


def test_bad_rows_are_a_reason_and_name_the_command(job_folder: Path) -> None:
    (job_folder / "train.jsonl").write_text("{}\n")
    with pytest.raises(PlanError, match="maas validate"):
        local_plan(job_folder, job_with())


def test_rows_elsewhere_cannot_be_trained_here() -> None:
    job = job_with()
    with pytest.raises(PlanError, match="not on this disk"):
        make_plan(job, local_limits(job.model), training=DataPlan("azureml:rows:1"))


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, 10),
        ({"per_device_train_batch_size": 4}, 3),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 2),
        ({"num_train_epochs": 2.5}, 25),
        ({"num_train_epochs": 0.25}, 3),
        ({"max_steps": 7, "num_train_epochs": 3}, 7),
        ({"per_device_train_batch_size": 2, "batch_size_multiplier": 2.0}, 3),
    ],
)
def test_steps_are_counted_as_they_will_run(values: dict[str, float], steps: int) -> None:
    assert count_steps(10, values) == steps


def test_the_portals_multipliers_scale() -> None:
    assert learning_rate({"learning_rate": 2e-5, "learning_rate_multiplier": 0.5}) == 1e-5
    assert batch_size({"per_device_train_batch_size": 4, "batch_size_multiplier": 0.1}) == 1


def test_a_plan_survives_its_file(job_folder: Path) -> None:
    plan = local_plan(job_folder, job_with(lora_r="4"))
    again = plan_from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    assert again.values == plan.values


def test_a_stand_in_is_named_and_nothing_is_guessed(job_folder: Path) -> None:
    plan = local_plan(job_folder, job_with())
    assert "Trains a stand-in, not Phi-3-mini-4k-instruct." in plan.warnings
    assert plan.forecast.cost_usd is None


def local_plan(folder: Path, job: FineTuningJob) -> Plan:
    file = folder / "train.jsonl"
    return make_plan(
        job,
        local_limits(job.model),
        training=DataPlan(str(file), check(file, job.task)),
        base=BaseInfo("stand-in", "a stand-in", "0" * 64, stand_in=True),
        tokens=TokenCount(30, 10, 12, 0, "a stand-in's tokenizer"),
        threads=1,
    )
