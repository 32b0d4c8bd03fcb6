"""What managed compute and online endpoints decide by themselves: sizes, defaults, forms of questions."""

from __future__ import annotations

from typing import Any

import pytest

from local_runner.mock_server.doors import component_door, pipeline_shape, pipelines
from local_runner.mock_server.doors.managed import compute_name
from local_runner.mock_server.doors.questions import scored
from local_runner.mock_server.doors.sizes import check_deployment, check_size, check_types
from local_runner.mock_server.errors import ServiceError
from maas_client.spec import hyperparameters
from maas_client.spec.catalog import ModelEntry, catalog, find_model
from maas_client.spec.sizes import SIZES

TURN = {"role": "user", "content": "Hello?"}


def entry(name: str) -> ModelEntry:
    found = find_model(name)
    assert found is not None
    return found


def test_every_recommended_size_is_known_and_large_enough() -> None:
    for model in catalog().values():
        for name in model.finetune_skus:
            check_size(model, SIZES[name.lower()])
            check_types(model, [name], "eastus2")


@pytest.mark.parametrize(
    ("model", "size", "fits"),
    [
        ("Phi-3-mini-4k-instruct", "standard_nd40rs_v2", True),  # the notebook's own
        ("Phi-3-mini-4k-instruct", "standard_nc6s_v3", False),
        ("Phi-3-mini-4k-instruct", "standard_ds3_v2", False),
        ("Phi-3-medium-4k-instruct", "standard_nc24ads_a100_v4", False),
        ("Phi-4-mini-instruct", "standard_nc6s_v3", True),  # the registry asks for nothing
        ("Phi-4-mini-instruct", "standard_e4s_v3", False),
    ],
)
def test_a_size_fits_a_model_or_is_refused(model: str, size: str, *, fits: bool) -> None:
    if fits:
        check_size(entry(model), SIZES[size])
        return
    with pytest.raises(ServiceError, match="is too small") as caught:
        check_size(entry(model), SIZES[size])
    assert caught.value.inner == "InsufficientComputeResources"


def test_one_instance_type_that_fits_is_enough() -> None:
    mini = entry("Phi-3-mini-4k-instruct")
    check_types(mini, ["Standard_E4s_v3", "standard_nc96ads_a100_V4"], "eastus2")
    with pytest.raises(ServiceError, match="None of the instance types"):
        check_types(mini, ["Standard_E4s_v3"], "eastus2")


def test_a_size_of_tomorrow_may_serve_and_a_known_wrong_one_may_not() -> None:
    check_deployment(["Standard_NC24ads_A100_v4"], "model", "Standard_Tomorrow")
    check_deployment(["Standard_NC24ads_A100_v4"], "model", "STANDARD_NC24ADS_A100_V4")
    with pytest.raises(ServiceError, match="Standard_DS3_v2 is not supported"):
        check_deployment(["Standard_NC24ads_A100_v4"], "model", "Standard_DS3_v2")


@pytest.mark.parametrize(
    ("given", "name"),
    [("gpu", "gpu"), ("azureml:gpu", "gpu"), ("/subscriptions/s/computes/gpu", "gpu"), (None, "")],
)
def test_a_compute_is_named_in_three_ways(given: str | None, name: str) -> None:
    assert compute_name(given) == name


def test_the_components_defaults_are_hyperparameters_that_can_be_read() -> None:
    knobs = {
        name: given["default"]
        for name, given in component_door.component()["inputs"].items()
        if name in hyperparameters.KNOBS
    }
    assert len(knobs) > 25
    assert {
        name: hyperparameters.fault(name, text) for name, text in knobs.items()
    } == dict.fromkeys(knobs)


@pytest.mark.parametrize(
    ("body", "asked", "several"),
    [
        ({"input_data": {"input_string": [TURN]}}, [[TURN]], False),
        ({"input_data": [TURN]}, [[TURN]], False),
        ({"input_data": "Hello?"}, [[TURN]], False),
        ({"input_data": ["Hello?", "Hello?"]}, [[TURN], [TURN]], True),
        ({"input_data": {"input_string": [[TURN], [TURN]]}}, [[TURN], [TURN]], True),
        ({"input_data": {"columns": ["input_string"], "data": [["Hello?"]]}}, [[TURN]], True),
        (
            {"input_data": {"columns": ["x", "input_string"], "data": [[1, "Hello?"]]}},
            [[TURN]],
            True,
        ),
    ],
)
def test_a_question_comes_in_many_forms(
    body: dict[str, Any], asked: list[Any], *, several: bool
) -> None:
    questions, many = scored(body)
    assert [question["messages"] for question in questions] == asked
    assert many is several


def in_state(state: str, step: str = "") -> dict[str, Any]:
    job: dict[str, Any] = {"state": state, "name": "p", "pipeline": {"node": "tune"}}
    parent = "p" if step == "tune" else "the node's run"
    return job | {"inner": {"step": step, "parent": parent}, "root": "p"} if step else job


@pytest.mark.parametrize(
    ("state", "shown", "training", "after"),
    [
        ("Queued", "Preparing", "NotStarted", "NotStarted"),
        ("Running", "Running", "Running", "NotStarted"),
        ("CancelRequested", "CancelRequested", "CancelRequested", "NotStarted"),
        ("Finalizing", "Finalizing", "Completed", "Running"),
        ("Completed", "Completed", "Completed", "Completed"),
        ("Failed", "Failed", "Failed", "NotStarted"),
        ("Canceled", "Canceled", "Canceled", "NotStarted"),
    ],
)
def test_a_pipelines_steps_follow_its_state(
    state: str, shown: str, training: str, after: str
) -> None:
    assert pipeline_shape.state(in_state(state)) == shown
    assert pipeline_shape.state(in_state(state, "tune")) == shown
    assert pipeline_shape.state(in_state(state, "chat_completion_finetune")) == training
    assert pipeline_shape.state(in_state(state, "ft_nlp_model_converter")) == after


def test_two_pipelines_are_the_same_if_their_nodes_are() -> None:
    node = {
        "componentId": component_door.component_id("0.0.81"),
        "inputs": {"seed": {"value": "${{parent.inputs.seed}}"}},
        "outputs": {"mlflow_model_folder": {"value": "${{parent.outputs.model}}"}},
    }
    wire = {
        "jobType": "Pipeline",
        "jobs": {"tune": node},
        "inputs": {"seed": {"value": "1"}},
        "outputs": {"model": {"jobOutputType": "mlflow_model"}},
    }
    essence = pipelines.essence(wire)
    assert essence[1:] == [{"seed": "1"}, {"model": "mlflow_model_folder"}]
    assert pipelines.essence(wire | {"displayName": "other"}) == essence
    assert pipelines.essence(wire | {"inputs": {"seed": {"value": "2"}}}) != essence
    assert pipelines.essence({"jobType": "FineTuning"}) == []


def test_parameters_stand_inside_or_beside_the_data() -> None:
    inside = {
        "input_string": "Hello?",
        "parameters": {"max_new_tokens": 7, "return_full_text": True},
    }
    questions, _ = scored({"input_data": inside, "params": {"top_p": 0.5, "do_sample": False}})
    question = questions[0]
    assert (question["max_tokens"], question["top_p"], question["temperature"]) == (7, 0.5, 0)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "no input_data"),
        ({"input_data": []}, "empty"),
        ({"input_data": None}, "messages"),
        ({"input_data": 5}, "messages"),
        ({"input_data": {}}, "no input_string"),
        ({"input_data": {"columns": ["a"], "data": [[1, 2]]}}, "rows"),
        ({"input_data": [{"role": "nobody", "content": "x"}]}, "role"),
        ({"input_data": {"input_string": "x", "parameters": {"temperature": 9}}}, "temperature"),
    ],
)
def test_what_is_no_question_is_refused(body: dict[str, Any], word: str) -> None:
    with pytest.raises(ServiceError, match=word):
        scored(body)
