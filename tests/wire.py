"""Bare HTTP to a mock: a client with a token, the workspace's path, rows in its storage, a job's body."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from maas_client.spec.rundir import read_json
from tests.conftest import ROW
from tests.mocking import Mock

MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
ROWS = f"{ROW}\n{ROW.replace('tap', 'door')}\n".encode()
ENDED = ("Completed", "Failed", "Canceled")


def token(mock: Mock) -> str:
    """A bearer token, from where managed identities get theirs."""
    answer = httpx.get(
        f"{mock.state.identity_endpoint}?resource=x",
        headers={"X-IDENTITY-HEADER": mock.state.identity_header},
    )
    return str(answer.json()["access_token"])


@contextmanager
def line_to(mock: Mock) -> Iterator[httpx.Client]:
    """A client that has a token."""
    context = ssl.create_default_context(cafile=mock.state.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    headers = {"Authorization": f"Bearer {token(mock)}"}
    with httpx.Client(base_url=mock.state.url, verify=context, headers=headers, timeout=60) as made:
        yield made


def place_of(mock: Mock) -> str:
    """The workspace's path."""
    state = mock.state
    return (
        f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
    )


def control(mock: Mock) -> dict[str, str]:
    """The headers that open the control door."""
    return {"Authorization": f"Bearer {read_json(mock.home / 'secrets.json')['control']}"}


def put_rows(client: httpx.Client, mock: Mock, content: bytes = ROWS) -> str:
    """Rows in the workspace's storage; returns where a job finds them."""
    store = client.get(f"{place_of(mock)}/datastores/workspaceblobstore").json()["properties"]
    url = f"/mockacct.blob.core.local/{store['containerName']}/rows/rows.jsonl"
    assert (
        client.put(url, content=content, headers={"x-ms-blob-type": "BlockBlob"}).status_code == 201
    )
    return "azureml://datastores/workspaceblobstore/paths/rows/rows.jsonl"


def job_body(uri: str, *, output: str = "tuned", **knobs: str) -> dict[str, Any]:
    """A job as the SDK sends it."""
    return {
        "properties": {
            "jobType": "FineTuning",
            "displayName": "x",
            "experimentName": "x",
            "isArchived": False,
            "fineTuningDetails": {
                "modelProvider": "Custom",
                "taskType": "chatCompletion",
                "model": {"uri": MODEL, "jobInputType": "mlflow_model"},
                "trainingData": {"uri": uri, "jobInputType": "uri_file"},
                "hyperParameters": {"learning_rate": "0.00002"} | knobs,
            },
            "outputs": {"registered_model": {"assetName": output, "jobOutputType": "mlflow_model"}},
        }
    }


def wait_for(client: httpx.Client, url: str, *, seconds: float = 60) -> dict[str, Any]:
    """The job at the address, once it is over."""
    end = time.monotonic() + seconds
    while True:
        job: dict[str, Any] = client.get(url).json()
        if job["properties"]["status"] in ENDED:
            return job
        assert time.monotonic() < end, job["properties"]["status"]
        time.sleep(0.02)
