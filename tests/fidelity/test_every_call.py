"""Every call under the newest azure-ai-ml, by keywords; and jobs that wait for one another."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from maas_client.spec.rundir import read_json
from tests.conftest import ROW
from tests.fidelity.matrix import DEFECTS, VERSIONS, is_known
from tests.mocking import running_mock

PROGRAM = Path(__file__).with_name("every_call.py")
NEWEST = list(VERSIONS)[-1]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Check -> `ok`, or what went wrong (recipe B; `make matrix` runs recipe A and the older versions)."""
    folder = tmp_path_factory.mktemp("calls")
    rows = folder / "train.jsonl"
    rows.write_text("".join(ROW.replace("tap", f"tap {n}") + "\n" for n in range(40)))
    options = ("--engine", "simulate", "--simulate-seconds", "0.5")
    with running_mock(folder / "mock", *options) as mock:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(rows), str(folder)],
            env=mock.environment("B"),
            cwd=folder,  # outside a git checkout, whose state the SDK would send
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_call_does_what_it_does_on_the_service(seen: dict[str, str]) -> None:
    wrong = {name: words for name, words in seen.items() if not is_known(name, NEWEST, words)}
    assert {name: words for name, words in wrong.items() if words != "ok"} == {}
    assert len(seen) > 50


def test_the_sdks_own_defects_are_still_there(seen: dict[str, str]) -> None:
    """Else the notes that say so are out of date."""
    known = {name for name, (versions, _, _) in DEFECTS.items() if NEWEST in versions}
    assert {name for name, words in seen.items() if words != "ok"} == known


def test_the_committed_table_is_of_these_checks(seen: dict[str, str]) -> None:
    table = PROGRAM.with_name("MATRIX.md").read_text()
    assert [name for name in seen if f"| {name} |" not in table] == []
    assert "FAILED" not in table


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[httpx.Client, str]]:
    """A workspace whose jobs take a minute and run one after another."""
    options = ("--engine", "simulate", "--simulate-seconds", "60", "--capacity", "1")
    with running_mock(tmp_path, *options) as mock:
        state = mock.state
        place = (
            f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
        )
        who = {"X-IDENTITY-HEADER": state.identity_header}
        token = httpx.get(state.identity_endpoint, headers=who).json()["access_token"]
        context = ssl.create_default_context(cafile=state.ca)
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=state.url, verify=context, headers=headers) as line:
            yield line, place
            secret = read_json(tmp_path / "secrets.json")["control"]
            control = {"Authorization": f"Bearer {secret}"}
            assert line.post("/__mock__/reset", headers=control, timeout=60).status_code == 200


def test_a_job_over_the_capacity_says_running_first_and_queued_then(
    slow: tuple[httpx.Client, str], tmp_path: Path
) -> None:
    line, place = slow
    store = line.get(f"{place}/datastores/workspaceblobstore").json()["properties"]
    blob = f"/mockacct.blob.core.local/{store['containerName']}/rows.jsonl"
    line.put(blob, content=f"{ROW}\n".encode(), headers={"x-ms-blob-type": "BlockBlob"})

    def put(name: str) -> str:
        return status(line.put(f"{place}/jobs/{name}", json={"properties": definition(name)}))

    def now(name: str) -> str:
        return status(line.get(f"{place}/jobs/{name}"))

    assert [put("first"), put("second")] == ["Running", "Running"]
    until(lambda: (now("first"), now("second")) == ("Running", "Queued"))
    details = line.get(f"/history/v1.0{place}/runs/second/details").json()
    assert details["status"] == "Queued"
    control = {"Authorization": f"Bearer {read_json(tmp_path / 'secrets.json')['control']}"}
    line.patch("/__mock__/controls", json={"capacity": 2}, headers=control)
    until(lambda: (now("first"), now("second")) == ("Running", "Running"))


def status(answer: httpx.Response) -> str:
    assert answer.status_code in (200, 201), answer.text
    shown: str = answer.json()["properties"]["status"]
    return shown


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def definition(name: str) -> dict[str, Any]:
    rows = {"uri": "azureml://datastores/workspaceblobstore/paths/rows.jsonl"}
    model = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
    return {
        "jobType": "FineTuning",
        "fineTuningDetails": {
            "modelProvider": "Custom",
            "taskType": "chatCompletion",
            "model": {"uri": model, "jobInputType": "mlflow_model"},
            "trainingData": {**rows, "jobInputType": "uri_file"},
        },
        "outputs": {"registered_model": {"assetName": name, "jobOutputType": "mlflow_model"}},
    }
