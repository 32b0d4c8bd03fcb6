"""The vendors' unmodified SDKs against the mock: what their users would see."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROW
from tests.fidelity.notebook_run import run_notebook
from tests.mocking import Mock, running_mock


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


@pytest.fixture(scope="module")
def seen(mock: Mock, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One walk through the notebook, told where to go by the environment alone (recipe A)."""
    return run_notebook(mock.environment("A"), rows, tmp_path_factory.mktemp("notebook"))


def test_workspace_and_registry_are_found(seen: dict[str, Any]) -> None:
    assert seen["workspace"] == ["mock-workspace", "eastus2", True]
    assert seen["registry"] == ["Phi-3-mini-4k-instruct", "15", "eastus2", True]
    assert seen["registry version"] == "14"


@pytest.mark.parametrize(
    ("key", "kind", "status", "word"),
    [
        ("unknown model", "ResourceNotFoundError", 404, "Phi-3-mini-4k-instruct:99"),
        ("unknown registry", "ResourceNotFoundError", 404, "nowhere"),
        ("absent data", "ResourceNotFoundError", 404, "train:1"),
        ("marketplace", "HttpResponseError", 400, "Microsoft model"),
        ("same name, other body", "ResourceExistsError", 409, "by-file"),
        ("second deployment", "HttpResponseError", 400, "already deployed"),
    ],
)
def test_refusals_raise_what_the_sdks_user_would_get(
    seen: dict[str, Any], key: str, kind: str, status: int, word: str
) -> None:
    assert (seen[key]["type"], seen[key]["status"]) == (kind, status)
    assert word in seen[key]["text"]


def test_data_is_uploaded_once_and_versioned(seen: dict[str, Any]) -> None:
    assert seen["data"] == ["train", "1", True, "1"]
    assert seen["next version"] == "2"


def test_the_put_answers_running_and_echoes_the_job(seen: dict[str, Any]) -> None:
    put = seen["put"]
    assert put["status"] == "JobStatus.RUNNING"
    assert (put["task"], put["type"], put["own"]) == ("chatCompletion", "MaaS", "my_value")
    assert put["tags"] == {"foo_tag": "bar"}
    assert put["output"] == "tuned"
    assert put["hyperparameters"]["learning_rate"] == "0.00002"


def test_the_log_streams_live_as_the_trainer_prints_it(seen: dict[str, Any]) -> None:
    assert "Streaming user_logs/std_log.txt" in seen["stream"]
    assert "SIMULATED" in seen["stream"]
    assert seen["stream"].count("'loss':") == 20
    assert seen["done"] == ["JobStatus.COMPLETED", True]


def test_jobs_are_listed_archived_and_cancelled(seen: dict[str, Any]) -> None:
    assert seen["same name, same body"] == "by-file"
    assert seen["cancelled"] == "JobStatus.CANCELED"
    assert seen["list"] == ["to-cancel", "by-file", "by-function"]
    assert seen["list after archive"] == ["by-file", "by-function"]
    assert seen["list archived"] == ["to-cancel"]


def test_artifacts_and_the_registered_model_are_downloaded(seen: dict[str, Any]) -> None:
    assert seen["model"] == ["tuned", "1", "1", "true"]
    files = set(seen["files"])
    assert "artifacts/artifacts/user_logs/std_log.txt" in files
    for place in ("named/named-outputs", "model/tuned"):
        assert f"{place}/registered_model/MLmodel" in files
        assert f"{place}/registered_model/data/model/adapter_model.safetensors" in files


def test_the_endpoint_answers_and_minds_its_key(seen: dict[str, Any]) -> None:
    assert seen["endpoint"] == ["my-endpoint", "succeeded", "Key"]
    assert seen["endpoints"] == ["my-endpoint"]
    for way in ("bare key", "bearer", "api-key"):
        assert seen["chat"][way][0] == 200
        assert seen["chat"][way][1].startswith("[SIMULATED]")
    for way in ("wrong", "none"):
        assert seen["chat"][way][0] == 401
    assert seen["deleted"] == 404


def test_keywords_reach_the_mock_as_well_and_its_state_is_shared(
    mock: Mock, seen: dict[str, Any]
) -> None:
    """Recipe B in another process: what the first one made is still there."""
    code = (
        "import json, os, warnings, logging; warnings.simplefilter('ignore'); logging.disable(50)\n"
        "from azure.ai.ml import MLClient; from azure.identity import DefaultAzureCredential\n"
        "place = [os.environ[k] for k in"
        " ('AZURE_SUBSCRIPTION_ID', 'AZURE_RESOURCE_GROUP', 'AZUREML_WORKSPACE_NAME')]\n"
        "client = MLClient(DefaultAzureCredential(), *place, **json.loads(os.environ['CLOUD_KEYWORDS']))\n"
        "print(str(client.jobs.get('by-function').status), client.models.get('tuned', version='1').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=mock.environment("B"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["JobStatus.COMPLETED", "tuned"]
    assert seen["done"][0] == "JobStatus.COMPLETED"


CHAT_CLIENTS = """
import os, sys, warnings; warnings.simplefilter("ignore")
uri, key = sys.argv[1:]
import httpx, ssl
from openai import OpenAI, AuthenticationError
context = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
client = OpenAI(base_url=uri + "/v1", api_key=key, http_client=httpx.Client(verify=context))
turns = [{"role": "user", "content": "Hello?"}]
whole = client.chat.completions.create(model="any", messages=turns, max_tokens=20)
print(whole.choices[0].message.content, whole.usage.total_tokens > 0)
pieces = client.chat.completions.create(model="any", messages=turns, stream=True, max_tokens=20)
print("".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices))
try:
    wrong = OpenAI(base_url=uri + "/v1", api_key="x", http_client=httpx.Client(verify=context))
    wrong.chat.completions.create(model="any", messages=turns)
except AuthenticationError as error:
    print(error.status_code)
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import UserMessage
from azure.core.credentials import AzureKeyCredential
azure = ChatCompletionsClient(endpoint=uri, credential=AzureKeyCredential(key))
print(azure.complete(messages=[UserMessage("Hello?")], max_tokens=20).choices[0].message.content)
print(azure.get_model_info().model_type)
stream = azure.complete(messages=[UserMessage("Hi")], stream=True)
print("".join(update.choices[0].delta.content or "" for update in stream if update.choices))
"""

DEPLOY = """
import os, warnings, logging; warnings.simplefilter("ignore"); logging.disable(50)
from azure.ai.ml import MLClient
from azure.ai.ml.entities import ServerlessEndpoint
from azure.identity import DefaultAzureCredential
place = [os.environ[k] for k in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME")]
client = MLClient(DefaultAzureCredential(), *place)
base = ServerlessEndpoint(name="base-model", model_id="azureml://registries/azureml/models/Phi-3-mini-4k-instruct")
made = client.serverless_endpoints.begin_create_or_update(base).result()
print(made.scoring_uri, client.serverless_endpoints.get_keys("base-model").primary_key)
"""


def test_openai_and_azure_ai_inference_talk_to_an_endpoint(mock: Mock) -> None:
    environment = mock.environment("A")

    def python(code: str, *words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    uri, key = python(DEPLOY)[-1].split()
    answer = "[SIMULATED] No model answered. Phi-3-mini-4k-instruct was asked."
    assert python(CHAT_CLIENTS, uri, key) == [
        f"{answer} True",
        answer,
        "401",
        answer,
        "chat-completion",
        answer,
    ]
