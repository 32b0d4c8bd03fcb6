"""An environment with `[server]` alone runs the twin with the simulate engine."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from maas_client.settings import mock_state
from tests.conftest import ROW

BLOCKER = """
import sys
NAMES = {"torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "azure", "gguf", "jinja2",
         "huggingface_hub", "openai", "httpx", "typer", "rich"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)")
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing but the server's own packages can be imported, children included."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER)
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "site"),
        "MAAS_MOCK_HOME": str(tmp_path / "mock"),
    }
    check = [sys.executable, "-c", "import torch"]
    assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode != 0
    return environment


def mock(environment: dict[str, str], *words: str) -> None:
    command = [sys.executable, "-m", "local_runner", "mock", *words]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_job_is_simulated_where_only_the_servers_packages_are(
    tmp_path: Path, bare: dict[str, str]
) -> None:
    mock(bare, "serve", "--engine", "simulate", "--simulate-seconds", "0.2", "--detach")
    try:
        state = mock_state(tmp_path / "mock")
        assert state is not None
        header = {"X-IDENTITY-HEADER": state.identity_header}
        token = httpx.get(state.identity_endpoint, headers=header).json()["access_token"]
        place = (
            f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
        )
        context = ssl.create_default_context(cafile=state.ca)
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=state.url, verify=context, headers=headers) as client:
            store = client.get(f"{place}/datastores/workspaceblobstore").json()["properties"][
                "containerName"
            ]
            client.put(f"/mockacct.blob.core.local/{store}/rows.jsonl", content=f"{ROW}\n".encode())
            data = {
                "uri": "azureml://datastores/workspaceblobstore/paths/rows.jsonl",
                "jobInputType": "uri_file",
            }
            model = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
            details = {
                "modelProvider": "Custom",
                "taskType": "chatCompletion",
                "model": {"uri": model, "jobInputType": "mlflow_model"},
                "trainingData": data,
            }
            output = {"registered_model": {"assetName": "tuned", "jobOutputType": "mlflow_model"}}
            body = {
                "properties": {
                    "jobType": "FineTuning",
                    "fineTuningDetails": details,
                    "outputs": output,
                }
            }
            assert (
                client.put(f"{place}/jobs/one", json=body).json()["properties"]["status"]
                == "Running"
            )
            end = time.monotonic() + 60
            while (shown := client.get(f"{place}/jobs/one").json()["properties"])[
                "status"
            ] != "Completed":
                assert shown["status"] in ("Queued", "Running", "Finalizing"), shown
                assert time.monotonic() < end
                time.sleep(0.05)
            assert shown["properties"]["mockSimulated"] == "true"
            assert client.get(f"{place}/models/tuned/versions/1").status_code == 200
    finally:
        mock(bare, "stop")
