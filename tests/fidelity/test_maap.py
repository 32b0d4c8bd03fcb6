"""The notebook for managed compute against the mock: computes, the pipeline component, online endpoints."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from maas_client.spec.loading import parse_job
from maas_client.targets.azure_ml import AzureMLTarget
from tests.conftest import JOB, ROW
from tests.mocking import Mock, running_mock

HERE = Path(__file__).parent
MODEL = "Phi-3-mini-4k-instruct-ultrachat-200k"
BASE = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
ANSWER = "[SIMULATED] No model answered. Phi-3-mini-4k-instruct was asked."


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    home = tmp_path_factory.mktemp("mock")
    with running_mock(home, "--engine", "simulate", "--simulate-seconds", "0.5") as running:
        yield running


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    file.write_text("".join(ROW.replace("tap", f"tap {n}") + "\n" for n in range(40)))
    return file


def run(program: str, environment: dict[str, str], *words: str | Path) -> dict[str, Any]:
    """A stranger's program, and what it says that it saw."""
    done = subprocess.run(
        [sys.executable, str(HERE / program), *map(str, words)],
        env=environment | {"AZUREML_RUN_POLLING_INTERVAL_MIN": "0"},  # it streams in seconds
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def seen(mock: Mock, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One walk through the notebook, told where to go by the environment alone (recipe A)."""
    folder = tmp_path_factory.mktemp("notebook")
    return run("maap_notebook.py", mock.environment("A"), rows, folder)


@pytest.fixture(scope="module")
def refusals(
    mock: Mock, rows: Path, seen: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder, words = tmp_path_factory.mktemp("refusals"), (seen["model id"], seen["job"])
    return run("maap_refusals.py", mock.environment("A"), rows, folder, *words)


@pytest.fixture(scope="module")
def client(mock: Mock) -> Iterator[httpx.Client]:
    """The workspace itself, for what no SDK sends."""
    state = mock.state
    token = httpx.get(
        f"{state.identity_endpoint}?resource=x",
        headers={"X-IDENTITY-HEADER": state.identity_header},
    ).json()["access_token"]
    place = (
        f"{state.url}/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
    )
    verify = ssl.create_default_context(cafile=state.ca)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=place, verify=verify, headers=headers, timeout=30) as made:
        yield made


def test_a_workspace_has_no_compute_until_one_is_made(seen: dict[str, Any]) -> None:
    assert (seen["computes before"], seen["absent compute"]) == ([], 404)
    made = ["gpu-cluster-big", "succeeded", "STANDARD_NC24ADS_A100_V4", "dedicated", 0, 2]
    assert seen["compute"] == made
    assert (seen["computes"], seen["allowed"]) == (["gpu-cluster-big"], True)
    assert seen["deleted compute"][:2] == ["ResourceNotFoundError", 404]


def test_sizes_tell_their_gpus_and_quotas_their_limits(seen: dict[str, Any]) -> None:
    assert seen["sizes"] == [1, 8, 0]
    assert seen["usage"]


def test_the_registry_has_the_pipeline_component(seen: dict[str, Any]) -> None:
    listed = ["chat_completion_pipeline"]
    assert seen["component"] == ["chat_completion_pipeline", "pipeline", True, listed]


def test_a_pipeline_job_runs_and_is_shown_as_one(seen: dict[str, Any]) -> None:
    assert seen["put"] == [
        "JobStatus.PREPARING", "pipeline", "phi-3-ultrachat", "chat_completion_phi", ["trained_model"],
    ]  # fmt: skip
    assert seen["done"] == [
        "JobStatus.COMPLETED", "pipeline", ["tuned"], ["trained_model"], True, "MaaP",
        "nothing: SIMULATED",
    ]  # fmt: skip
    assert seen["listed"] == [[True, "pipeline"]]
    assert "Streaming logs/azureml/executionlogs.txt" in seen["stream"]
    assert seen["stream"].count("'loss':") == 20


def test_a_pipeline_job_is_archived_and_restored(seen: dict[str, Any]) -> None:
    assert (seen["archived"], seen["restored"]) == (True, True)


def test_a_tuning_job_names_its_machines_in_three_ways(seen: dict[str, Any]) -> None:
    size, done = "Standard_NC24ads_A100_v4", ["MaaP", "JobStatus.COMPLETED"]
    assert seen["standalone"] == {
        "by-compute": [*done, "gpu-cluster-big", None, None, "tuned-by-compute"],
        "by-types": [*done, None, [size, "Standard_E4s_v3"], None, "tuned-by-types"],
        "by-tier": [*done, None, [size], "spot", "tuned-by-tier"],
    }


def test_the_runs_inside_a_pipeline_are_seen(seen: dict[str, Any]) -> None:
    assert seen["node"] == ["tuned", "Completed"]
    names = [name for name, _ in seen["steps"]]
    assert names[0] == "ft_nlp_common_validation"
    assert names[3:] == ["chat_completion_finetune", "ft_nlp_model_converter"]
    assert {state for _, state in seen["steps"]} == {"Completed"}


def test_a_pipelines_output_becomes_a_model(seen: dict[str, Any]) -> None:
    assert seen["model"] == [MODEL, "1732000000", "mlflow_model", True, True, "tuned on ultrachat"]
    assert seen["next version"] == "1732000001"
    tuned = ["tuned-by-tier", "tuned-by-types", "tuned-by-compute"]
    assert (seen["models"], seen["models after archive"]) == ([MODEL, *tuned], tuned)
    assert seen["versions"] == ["1732000001"]
    for place in ("named-outputs", f"model/{MODEL}"):
        assert f"{place}/trained_model/MLmodel" in seen["files"]
        assert f"{place}/trained_model/data/model/adapter_model.safetensors" in seen["files"]
    assert "artifacts/user_logs/std_log.txt" in seen["files"]


def test_a_deployment_keeps_its_settings_and_gets_the_traffic(seen: dict[str, Any]) -> None:
    size = "Standard_NC24ads_A100_v4"
    assert seen["endpoint"] == "EndpointProvisioningState.SUCCEEDED"
    assert seen["deployment"] == ["demo", "Succeeded", size, 1, True, 600, 90000]
    assert (seen["traffic"], seen["deployments"]) == ({"demo": 100}, ["demo"])
    assert seen["endpoints"] == ["ultrachat-completion"]
    assert f"The mock serves {MODEL}:1732000000" in seen["logs"]


def test_an_online_endpoint_answers_every_form_of_question(seen: dict[str, Any]) -> None:
    assert seen["answers"] == {
        "one": ANSWER, "several": [ANSWER, ANSWER], "text": ANSWER, "texts": [ANSWER],
    }  # fmt: skip
    assert seen["by traffic"] == {"output": [ANSWER]}
    assert seen["bad question"][:2] == ["HttpResponseError", 424]


def test_an_online_endpoint_minds_its_key_or_token(seen: dict[str, Any]) -> None:
    assert seen["keys"] == [True, True]
    assert seen["old key"] == 401
    assert seen["by token"] == [True, ANSWER]
    assert seen["deployments after"] == []
    assert seen["deployment with traffic"][:2] == ["HttpResponseError", 400]
    assert seen["deleted"][:2] == ["ResourceNotFoundError", 404]


BAD, GONE, TAKEN = "HttpResponseError 400", "ResourceNotFoundError 404", "ResourceExistsError 409"


@pytest.mark.parametrize(
    ("case", "raised", "inner", "word"),
    [
        ("compute: absent", GONE, "ComputeNotFound", "nowhere"),
        ("compute: unknown size", BAD, "VmSizeNotSupported", "Standard_Q1"),
        ("compute: name", BAD, "InvalidComputeName", "a--b"),
        ("compute: scale", BAD, "InvalidScaleSettings", "minNodeCount is 3"),
        ("compute: kind", BAD, "UnsupportedComputeType", "ComputeInstance"),
        ("compute: delete absent", GONE, "ComputeNotFound", "nowhere"),
        ("compute: other size", TAKEN, "ConflictError", "big-enough"),
        ("job: absent compute", GONE, "ComputeNotFound", "nowhere"),
        ("job: absent compute by id", GONE, "ComputeNotFound", "no was not found"),
        ("job: small compute", BAD, "InsufficientComputeResources", "Standard_NC6s_v3"),
        ("job: instance types", BAD, "InstanceTypeNotSupported", "Standard_E4s_v3"),
        ("job: unknown type", BAD, "VmSizeNotSupported", "Standard_Q1"),
        ("component: absent", GONE, "ComponentNotFound", "nothing:1"),
        ("component: version", GONE, "ComponentNotFound", "chat_completion_pipeline:9.9"),
        ("pipeline: component", GONE, "ComponentNotFound", "chess_completion_pipeline"),
        ("pipeline: two nodes", BAD, "UnsupportedPipeline", "tune_0, tune_1"),
        ("pipeline: unknown input", BAD, "UnknownComponentInput", "lora_rank"),
        ("pipeline: no model", BAD, "MissingInput", "mlflow_model_path"),
        ("pipeline: no data", BAD, "MissingInput", "train_file_path"),
        ("pipeline: unserved input", BAD, "UnsupportedInput", "huggingface_id"),
        ("pipeline: number", BAD, "InvalidInputValue", "not an integer"),
        ("pipeline: too small a number", BAD, "InvalidInputValue", "less than 1"),
        ("pipeline: choice", BAD, "InvalidInputValue", "not one of linear"),
        ("pipeline: bounds", BAD, "InvalidHyperParameter", "learning_rate"),
        ("pipeline: absent compute", GONE, "ComputeNotFound", "nowhere"),
        ("pipeline: small compute", BAD, "InsufficientComputeResources", "Standard_NC6s_v3"),
        ("pipeline: gpus", BAD, "InvalidGpuCount", "is 8"),
        ("pipeline: nodes", BAD, "InvalidNodeCount", "is 9"),
        ("pipeline: unbound output", BAD, "InvalidOutputBinding", "trained"),
        ("pipeline: absent data", GONE, "NotFoundError", "refusals:99"),
        ("pipeline: absent test data", GONE, "NotFoundError", "test_file_path"),
        ("model: absent job", GONE, "NotFoundError", "nobody"),
        ("model: absent output", GONE, "OutputNotFound", "nothing"),
        ("model: no files", GONE, "ModelPathNotFound", "nothing/here"),
        ("model: no MLmodel", BAD, "InvalidMLflowModel", "MLmodel"),
        ("model: other path", TAKEN, "ConflictError", "Asset paths cannot be updated"),
        ("online: absent", GONE, "NotFoundError", "nowhere"),
        ("online: no traffic", GONE, "DeploymentNotFound", "positive weight"),
        ("online: traffic to nobody", BAD, "DeploymentNotFound", "nobody"),
        ("online: half the traffic", BAD, "InvalidTraffic", "50"),
        ("online: mode", TAKEN, "ConflictError", "authMode"),
        ("deployment: absent", GONE, "NotFoundError", "refusing/other"),
        ("deployment: absent endpoint", GONE, "NotFoundError", "nowhere"),
        ("deployment: absent model", GONE, "NotFoundError", f"{MODEL}:99"),
        ("deployment: unknown base", GONE, "NotFoundError", "Phi-3-huge"),
        ("deployment: small instance", BAD, "InstanceTypeNotSupported", "Standard_DS3_v2"),
        ("deployment: instances", BAD, "InvalidInstanceCount", "from 1 to 20"),
        ("deployment: other model", BAD, "ModelNotSupported", "plain:1"),
        ("deployment: has traffic", BAD, "DeploymentHasTraffic", "100 %"),
    ],
)
def test_refusals_raise_what_the_sdks_user_would_get(
    refusals: dict[str, Any], case: str, raised: str, inner: str, word: str
) -> None:
    kind, status, code, innermost, message = refusals[case]
    assert (f"{kind} {status}", innermost) == (raised, inner)
    assert code == ("NotFound" if case == "online: no traffic" else "UserError")
    assert word in message


def test_no_refusal_is_left_out_of_the_table(refusals: dict[str, Any]) -> None:
    marks = test_refusals_raise_what_the_sdks_user_would_get.pytestmark  # type: ignore[attr-defined]
    assert {case for case, *_ in marks[0].args[1]} == set(refusals)


def tuning(**properties: Any) -> dict[str, Any]:
    return {
        "properties": {
            "jobType": "FineTuning",
            "fineTuningDetails": {
                "modelProvider": "Custom",
                "taskType": "chatCompletion",
                "model": {"uri": BASE, "jobInputType": "mlflow_model"},
                "trainingData": {"uri": "azureml:refusals:1", "jobInputType": "uri_file"},
            },
            "outputs": {
                "registered_model": {"assetName": "tuned", "jobOutputType": "mlflow_model"}
            },
            **properties,
        }
    }


@pytest.mark.usefixtures("refusals")  # they leave clusters and data behind
def test_a_cluster_is_busy_as_long_as_jobs_run_on_it(client: httpx.Client) -> None:
    place = client.base_url.path.rstrip("/")
    ways = {"busy-one": "big-enough", "busy-two": f"{place}/computes/big-enough"}
    for name, compute in ways.items():
        body = tuning(computeId=compute)
        data = body["properties"]["fineTuningDetails"]["trainingData"]
        data["uri"] = f"{place}/data/refusals/versions/1"
        made = client.put(f"/jobs/{name}", json=body)
        assert made.status_code == 201, made.text
    refused = client.delete("/computes/big-enough")
    assert (refused.status_code, "in use by job" in refused.text) == (409, True)
    running: list[str] = []
    while not running:
        nodes = client.post("/computes/big-enough/listNodes").json()["nodes"]
        running = [node["runId"] for node in nodes]
    assert running in (["busy-one"], ["busy-two"])  # one at a time


def test_an_unknown_tier_is_refused(client: httpx.Client) -> None:
    reply = client.put("/jobs/hasty", json=tuning(queueSettings={"jobTier": "Gold"}))
    assert reply.status_code == 400
    assert "Null, Spot, Basic, Standard, Premium" in reply.json()["error"]["message"]


@pytest.mark.usefixtures("refusals")  # they need the model that is deleted here
def test_a_model_that_is_deployed_cannot_be_deleted(
    client: httpx.Client, seen: dict[str, Any]
) -> None:
    endpoint = {"location": "eastus2", "properties": {"authMode": "Key"}}
    assert client.put("/onlineEndpoints/holder", json=endpoint).status_code == 201
    properties = {
        "endpointComputeType": "Managed",
        "model": seen["model id"],
        "instanceType": "Standard_NC24ads_A100_v4",
    }
    body = {"location": "eastus2", "sku": {"name": "Default"}, "properties": properties}
    made = client.put("/onlineEndpoints/holder/deployments/demo", json=body)
    assert made.status_code == 201, made.text
    assert made.headers["azure-asyncoperation"]
    refused = client.delete(f"/models/{MODEL}/versions/1732000000")
    assert (refused.status_code, "in use by endpoint holder" in refused.text) == (409, True)
    assert client.delete("/onlineEndpoints/holder").status_code == 202
    assert client.delete(f"/models/{MODEL}/versions/1732000000").status_code == 200


@pytest.mark.filterwarnings("ignore")  # MLflow warns of its own parts
def test_a_pipeline_really_trains_and_its_endpoint_really_answers(
    rows: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On the tiny random model: nobody understands the answers, but they are the model's own."""
    with running_mock(
        tmp_path_factory.mktemp("train"), "--engine", "train", "--base", "tiny"
    ) as trainer:
        # The registry's half precision is not for a CPU. One job is enough.
        settings = {"FINETUNE": json.dumps({"precision": "32", "max_steps": 4}), "WAYS": ""}
        seen = run("maap_notebook.py", trainer.environment("A") | settings, rows, tmp_path)
    assert seen["done"][0] == "JobStatus.COMPLETED"
    assert "tiny" in seen["done"][-1]
    assert seen["answers"]["one"]
    assert "SIMULATED" not in json.dumps(seen["answers"])
    merged = f"model/{MODEL}/trained_model/data/merged/model.safetensors"
    assert merged in seen["files"]  # what the component does unless it is told not to
    import mlflow

    folder = tmp_path / "model" / MODEL / "trained_model"
    loaded = mlflow.pyfunc.load_model(str(folder))  # the registered model, as MLflow takes it
    assert loaded.predict(["Where is the tap?"], {"max_tokens": 20}) == seen["answers"]["texts"]


# After the notebook: it looks at a workspace of its own.
@pytest.mark.usefixtures("seen")
def test_one_job_file_goes_through_the_pipeline_component_too(mock: Mock) -> None:
    program = HERE.parents[1] / "samples" / "managed-compute" / "pipeline.py"
    environment = mock.environment("A") | {
        "AZUREML_RUN_POLLING_INTERVAL_MIN": "0",
        "MAAS_MOCK_HOME": str(mock.home),
    }
    done = subprocess.run(
        [sys.executable, str(program), "--target", "mock"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Managed compute needs quota for 24 vCPUs of Standard_NC24ads_A100_v4" in done.stdout
    assert "registered as support-agent-managed:1" in done.stdout


@pytest.mark.usefixtures("seen")
def test_a_plan_looks_a_cluster_up_in_the_workspace(mock: Mock, client: httpx.Client) -> None:
    for name, size in (("large", "Standard_NC24ads_A100_v4"), ("small", "Standard_NC6s_v3")):
        scale = {"minNodeCount": 0, "maxNodeCount": 1}
        inner = {"vmSize": size, "vmPriority": "Dedicated", "scaleSettings": scale}
        body = {
            "location": "eastus2",
            "properties": {"computeType": "AmlCompute", "properties": inner},
        }
        reply = client.put(f"/computes/{name}", json=body)
        assert reply.status_code in (200, 201), reply.text
    target = AzureMLTarget(mock.settings)
    try:
        large, small, absent = (
            target.limits(parse_job(JOB).model_copy(update={"compute": name}))
            for name in ("large", "small", "nobody")
        )
    finally:
        target.close()
    assert not large.refusals
    assert [text for text in large.warnings if "needs quota" in text]
    assert "small has nodes of Standard_NC6s_v3" in small.refusals[0]
    assert "the workspace has no cluster nobody" in absent.refusals[0]
