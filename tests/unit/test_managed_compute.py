"""Managed compute in a plan: which machines a model is tuned on, before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from maas_client.errors import NotFoundError, PlanError, UnreachableError
from maas_client.plan import DataPlan, Plan, make_plan
from maas_client.spec.catalog import catalog, find_model
from maas_client.spec.job import FineTuningJob
from maas_client.spec.loading import parse_job
from maas_client.spec.sizes import SIZES, may_tune, unsuitable
from tests.conftest import JOB
from tests.fake_azure import target

FITS, SMALL = "Standard_NC24ads_A100_v4", "Standard_NC6s_v3"


def job(model: str = "Phi-3-mini-4k-instruct", **fields: Any) -> FineTuningJob:
    raw = parse_job(JOB).to_dict()
    path = f"azureml://registries/azureml/models/{model}/labels/latest"
    return FineTuningJob.model_validate(raw | {"model": path} | fields)


def planned(given: FineTuningJob, compute: Any = None) -> Plan:
    """The plan of a workspace whose cluster is of that size, or answers with that error."""
    answer = compute
    if isinstance(compute, str):
        answer = {"properties": {"properties": {"vmSize": compute}}}
    limits = target(get_json=answer).limits(given)
    return make_plan(given, limits, training=DataPlan("azureml:rows:1"))


def types(*names: str) -> dict[str, Any]:
    return {"resources": {"instance_types": list(names)}}


def test_a_size_that_is_allowed_is_planned_with_a_word_on_quota() -> None:
    plan = planned(job(**types(FITS.upper())))
    assert [text for text in plan.warnings if f"quota for 24 vCPUs of {FITS}" in text]


@pytest.mark.parametrize("name", [SMALL, "Standard_DS3_v2", "Standard_NC64as_T4_v3"])
def test_a_size_that_is_not_allowed_is_refused_with_those_that_are(name: str) -> None:
    allowed = ", ".join(catalog()["Phi-3-medium-4k-instruct"].finetune_skus)
    with pytest.raises(PlanError, match="resources.instance_types: None of") as caught:  # noqa: RUF043
        planned(job("Phi-3-medium-4k-instruct", **types(name)))
    assert f"Allowed: {allowed}" in str(caught.value)
    assert "320 GB" not in str(caught.value)
    assert "96 vCPUs, 880 GB, 4 GPUs with 256 GB together" in str(caught.value)


def test_one_size_that_fits_is_enough_and_the_others_are_told() -> None:
    plan = planned(job(**types(SMALL, FITS)))
    assert [text for text in plan.warnings if f"{SMALL} cannot tune" in text]


def test_a_size_that_nobody_knows_is_the_services_to_judge() -> None:
    plan = planned(job(**types("Standard_ND999_v9")))
    assert [text for text in plan.warnings if "Standard_ND999_v9 is not known here" in text]


@pytest.mark.parametrize("compute", ["gpu", "azureml:gpu", "/subscriptions/s/computes/gpu"])
def test_a_cluster_is_looked_up(compute: str) -> None:
    assert planned(job(compute=compute), FITS.lower())
    with pytest.raises(PlanError, match="compute: gpu has nodes of Standard_NC6s_v3"):
        planned(job(compute=compute), SMALL)


def test_a_cluster_that_is_not_there_is_refused_with_the_command_that_makes_it() -> None:
    with pytest.raises(PlanError, match=f"--name gpu --size {FITS}"):
        planned(job(compute="gpu"), NotFoundError("no", status=404))


def test_a_cluster_that_cannot_be_looked_up_is_the_services_to_judge() -> None:
    for answer in (UnreachableError("gone"), {"properties": {}}, "Standard_ND999_v9"):
        plan = planned(job(compute="gpu"), answer)
        assert [text for text in plan.warnings if text.startswith("compute: ")]


def test_a_tier_that_can_be_taken_away_is_told() -> None:
    plan = planned(job(queue_settings={"job_tier": "Spot"}, **types(FITS)))
    assert [text for text in plan.warnings if "job_tier spot" in text]


def test_a_serverless_job_asks_after_no_machine() -> None:
    place = target()
    plan = make_plan(job(), place.limits(job()), training=DataPlan("azureml:rows:1"))
    assert not [text for text in plan.warnings if "quota" in text]
    assert not place._child.asked  # type: ignore[attr-defined]
    serverless = job(compute="serverless", **types(FITS))
    assert make_plan(serverless, place.limits(serverless), training=DataPlan("azureml:rows:1"))


def test_every_size_that_the_registry_lists_may_tune_its_model() -> None:
    for entry in catalog().values():
        for name in entry.finetune_skus:
            assert may_tune(entry, SIZES[name.lower()]), (entry.name, name)
    medium = find_model("Phi-3-medium-4k-instruct")
    assert medium is not None
    assert unsuitable(medium, []) is None
