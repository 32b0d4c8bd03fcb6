"""What the mock outlives: a kill -9, requests that are wrong in every way, uploads in blocks."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_runner.mock_server import tls
from maas_client.spec.rundir import RunDir
from tests.conftest import ROW
from tests.mocking import Mock, mock_command, running_mock, start_mock

MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"


class Line:
    """The wire, by hand."""

    def __init__(self, mock: Mock) -> None:
        state = mock.state
        header = {"X-IDENTITY-HEADER": state.identity_header}
        token = httpx.get(state.identity_endpoint, headers=header).json()["access_token"]
        self.place = (
            f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
        )
        self.client = httpx.Client(
            base_url=state.url,
            verify=ssl.create_default_context(cafile=state.ca),
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )

    def __call__(self, method: str, path: str, body: Any = None) -> httpx.Response:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        return self.client.request(method, path.replace("{W}", self.place), content=content)

    def bring_rows(self) -> None:
        store = self("GET", "{W}/datastores/workspaceblobstore").json()["properties"]
        path = f"/mockacct.blob.core.local/{store['containerName']}/rows.jsonl"
        assert self("PUT", path, f"{ROW}\n{ROW}\n".encode()).status_code == 201

    def status(self, job: str) -> str:
        return str(self("GET", f"{{W}}/jobs/{job}").json()["properties"]["status"])

    def wait(self, job: str) -> str:
        end = time.monotonic() + 60
        while (status := self.status(job)) not in ("Completed", "Failed", "Canceled"):
            assert time.monotonic() < end, status
            time.sleep(0.05)
        return status


@contextmanager
def line_to(mock: Mock) -> Iterator[Line]:
    line = Line(mock)
    with line.client:
        yield line


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    home = tmp_path_factory.mktemp("mock")
    with running_mock(home, "--engine", "simulate", "--simulate-seconds", "0.2") as running:
        yield running


@pytest.fixture(scope="module")
def line(mock: Mock) -> Iterator[Line]:
    with line_to(mock) as made:
        made.bring_rows()
        yield made


def job(**more: Any) -> dict[str, Any]:
    data = {
        "uri": "azureml://datastores/workspaceblobstore/paths/rows.jsonl",
        "jobInputType": "uri_file",
    }
    details = {
        "modelProvider": "Custom",
        "taskType": "chatCompletion",
        "model": {"uri": MODEL, "jobInputType": "mlflow_model"},
        "trainingData": data,
    }
    output = {"registered_model": {"assetName": "tuned", "jobOutputType": "mlflow_model"}}
    properties = {"jobType": "FineTuning", "fineTuningDetails": details, "outputs": output}
    return {"properties": properties | more}


def test_a_killed_server_finds_its_job_again_and_runs_it_once(tmp_path: Path) -> None:
    options = ("--engine", "simulate", "--simulate-seconds", "2")
    mock = start_mock(tmp_path, *options)
    try:
        with line_to(mock) as line:
            line.bring_rows()
            assert line("PUT", "{W}/jobs/one", job()).status_code == 201
            run = RunDir(tmp_path / "runs" / "one")
            end = time.monotonic() + 30
            while len(run.metrics()) < 1:
                assert time.monotonic() < end
                time.sleep(0.01)
        os.kill(mock.state.pid, signal.SIGKILL)
        mock = start_mock(tmp_path, *options)
        with line_to(mock) as line:
            assert line("PUT", "{W}/jobs/one", job()).status_code == 200  # sent again: the same job
            assert line.wait("one") == "Completed"
            assert line("GET", "{W}/models/tuned/versions").json()["value"][0]["name"] == "1"
        with sqlite3.connect(tmp_path / "store.sqlite") as db:
            (body,) = db.execute("SELECT body FROM documents WHERE kind = 'job'").fetchone()
        assert json.loads(body)["starts"] == 1
        ends = [event for event in run.events() if event.data.get("status") == "succeeded"]
        assert len(ends) == 1
    finally:
        mock_command(tmp_path, "stop")


Poison = Callable[[Line], httpx.Response]
POISON: dict[str, Poison] = {
    "half a character": lambda line: line("PUT", "{W}/jobs/p", job(displayName="\ud800")),
    "not a number": lambda line: line("PUT", "{W}/jobs/p", job(notificationSetting=float("nan"))),
    "infinity": lambda line: line(
        "PUT", "{W}/jobs/p", json.dumps(job()).replace('"properties"', '"x": 1e999, "properties"', 1).encode()
    ),
    "an output that is none": lambda line: line(
        "PUT", "{W}/jobs/p", job(outputs=job()["properties"]["outputs"] | {"x": 5})
    ),
    "a version that is no number": lambda line: line(
        "PUT", "{W}/data/d/versions/²", {"properties": {"dataUri": "x", "dataType": "uri_file"}}
    ),
    "settings that are none": lambda line: line(
        "PUT", "{W}/serverlessEndpoints/eee", {"properties": {"modelSettings": "x"}}
    ),
    "a name too long": lambda line: line("PUT", f"/mockacct.blob.core.local/box/{'x' * 1025}", b"x"),
    "a control character": lambda line: line("PUT", "/mockacct.blob.core.local/box/%01", b"x"),
}  # fmt: skip


@pytest.mark.parametrize("name", POISON)
def test_what_could_not_be_shown_later_is_refused_now(line: Line, name: str) -> None:
    assert POISON[name](line).status_code == 400
    for path in ("{W}/jobs", "{W}/data", "{W}/serverlessEndpoints"):
        assert line("GET", path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "{W}/datastores/workspaceblobstore/listSecrets", {"expireAfterHours": 1e300}),
        ("POST", "{W}/datastores/workspaceblobstore/listSecrets", {"expireAfterHours": "x"}),
        ("GET", "{W}/jobs?$skip=²", None),
        ("GET", f"{{W}}/jobs?$skip={'9' * 5000}", None),
        ("GET", "{W}/models/absent/versions?$top=²", None),
        ("GET", "/mockacct.blob.core.local/box?restype=container&comp=list&maxresults=²", None),
    ],
)
def test_odd_numbers_break_nothing(line: Line, method: str, path: str, body: Any) -> None:
    assert line(method, path, body).status_code < 500


def test_a_long_list_of_jobs_comes_in_pages_and_costs_the_idle_worker_nothing(
    mock: Mock, line: Line
) -> None:
    for number in range(60):
        name = f"page-{number:02d}"
        assert line("PUT", f"{{W}}/jobs/{name}", job()).status_code == 201
        assert line("POST", f"{{W}}/jobs/{name}/cancel").status_code == 202
    line.wait("page-59")
    names: list[str] = []
    link = "{W}/jobs?listViewType=ActiveOnly&api-version=2024-01-01-preview"
    while link:
        page = line("GET", link).json()
        names += [entry["name"] for entry in page["value"]]
        link = (page["nextLink"] or "").removeprefix(mock.state.url)
    assert [name for name in names if name.startswith("page-")] == [
        f"page-{number:02d}" for number in reversed(range(60))
    ]


BIG = """
import os, sys, warnings, logging; warnings.simplefilter("ignore"); logging.disable(50)
from azure.ai.ml import MLClient
from azure.ai.ml.entities import Data
from azure.identity import DefaultAzureCredential
place = [os.environ[k] for k in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME")]
client = MLClient(DefaultAzureCredential(), *place)
made = client.data.create_or_update(Data(path=sys.argv[1], type="uri_file", name="big", version="1"))
print(made.path)
"""


def test_azure_ai_ml_uploads_a_large_file_in_blocks(mock: Mock, line: Line, tmp_path: Path) -> None:
    big = tmp_path / "large rows é.jsonl"
    row = json.dumps({"messages": [{"role": "user", "content": "x" * 1_000_000}]}) + "\n"
    big.write_text(row * 70)
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(big)],
        env=mock.environment("A"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    path = done.stdout.splitlines()[-1].partition("/paths/")[2]
    store = line("GET", "{W}/datastores/workspaceblobstore").json()["properties"]["containerName"]
    digest, size = hashlib.sha256(), 0
    url = f"/mockacct.blob.core.local/{store}/{path}"
    with line.client.stream("GET", url) as answer:
        assert answer.headers["x-ms-meta-upload_status"] == "completed"
        for part in answer.iter_raw():
            digest.update(part)
            size += len(part)
    with big.open("rb") as stream:
        assert (size, digest.hexdigest()) == (
            big.stat().st_size,
            hashlib.file_digest(stream, "sha256").hexdigest(),
        )
    with sqlite3.connect(mock.home / "store.sqlite") as db:
        (body,) = db.execute("SELECT body FROM documents WHERE key LIKE '%large rows%'").fetchone()
    assert json.loads(body)["blocks"]  # it came in blocks
    job_on_it = job()
    job_on_it["properties"]["fineTuningDetails"]["trainingData"]["uri"] = (
        f"{line.place}/data/big/versions/1"
    )
    refused = line("PUT", "{W}/jobs/big", job_on_it)
    assert (refused.status_code, "70 of 70 rows" in refused.text) == (400, True)  # no answers in it


def test_the_environment_comes_for_a_shell_a_program_or_as_json(mock: Mock) -> None:
    values = json.loads(mock_command(mock.home, "env", "--shell", "json").stdout)
    code = mock_command(mock.home, "env", "--shell", "python").stdout
    show = f"import json; print(json.dumps({{key: os.environ[key] for key in {list(values)}}}))"
    done = subprocess.run(
        [sys.executable, "-c", code + show], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == values
    shell = mock_command(mock.home, "env").stdout
    assert all(f"export {key}=" in shell for key in values)
    assert "unset CURL_CA_BUNDLE" in shell


def test_home_may_stand_behind_the_verb(mock: Mock) -> None:
    command = [sys.executable, "-m", "local_runner", "mock", "status", "--json", "--home"]
    done = subprocess.run([*command, str(mock.home)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["pid"] == mock.state.pid


def test_a_certificate_without_its_key_is_made_anew_and_serves(tmp_path: Path) -> None:
    made = tls.ensure(tmp_path)
    made.key.unlink()
    again = tls.ensure(tmp_path)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(again.chain, again.key)
    assert again.key.stat().st_mode & 0o077 == 0
