"""What the service refuses: status, code, inner code and text, over the wire. And the doors themselves."""

from __future__ import annotations

import copy
import datetime as dt
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_runner.mock_server import tls
from maas_client.spec.rundir import read_json
from tests.conftest import ROW
from tests.mocking import Mock, mock_command, running_mock

MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with running_mock(tmp_path_factory.mktemp("mock"), "--engine", "simulate") as running:
        yield running


@pytest.fixture(scope="module")
def client(mock: Mock) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=mock.state.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    token = httpx.get(
        f"{mock.state.identity_endpoint}?resource=x",
        headers={"X-IDENTITY-HEADER": mock.state.identity_header},
    ).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=mock.state.url, verify=context, headers=headers, timeout=30) as made:
        yield made


@pytest.fixture(scope="module")
def place(mock: Mock) -> str:
    state = mock.state
    return (
        f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
    )


@pytest.fixture(scope="module")
def data(client: httpx.Client, place: str) -> dict[str, str]:
    """Data assets: good rows, bad rows, and one whose blob is not there."""
    store = client.get(f"{place}/datastores/workspaceblobstore").json()["properties"]
    bodies = {"good": f"{ROW}\n{ROW.replace('tap', 'door')}\n", "bad": '{"mesages": []}\n'}
    assets = {}
    for name in ("good", "bad", "gone"):
        if name in bodies:
            url = f"/mockacct.blob.core.local/{store['containerName']}/{name}/rows.jsonl"
            put = client.put(
                url, content=bodies[name].encode(), headers={"x-ms-blob-type": "BlockBlob"}
            )
            assert put.status_code == 201
        uri = f"azureml://datastores/workspaceblobstore/paths/{name}/rows.jsonl"
        body = {"properties": {"dataUri": uri, "dataType": "uri_file"}}
        made = client.put(f"{place}/data/{name}/versions/1", json=body)
        assert made.status_code == 201
        assets[name] = made.json()["id"]
    return assets


def job_body(data: dict[str, str]) -> dict[str, Any]:
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
                "trainingData": {"uri": data["good"], "jobInputType": "uri_file"},
                "hyperParameters": {"learning_rate": "0.00002"},
            },
            "outputs": {
                "registered_model": {"assetName": "tuned", "jobOutputType": "mlflow_model"}
            },
        }
    }


Edit = Callable[[dict[str, Any], dict[str, str]], None]


def model(uri: str) -> Edit:
    return lambda body, _: body["fineTuningDetails"]["model"].update(uri=uri)


def knob(**values: Any) -> Edit:
    return lambda body, _: body["fineTuningDetails"]["hyperParameters"].update(values)


def details(**values: Any) -> Edit:
    return lambda body, _: body["fineTuningDetails"].update(values)


def training(uri: str) -> Edit:
    return lambda body, _: body["fineTuningDetails"]["trainingData"].update(uri=uri)


def asset(name: str) -> Edit:
    return lambda body, data: body["fineTuningDetails"]["trainingData"].update(uri=data[name])


def drop(key: str) -> Edit:
    return lambda body, _: body["fineTuningDetails"].pop(key)


def top(**values: Any) -> Edit:
    return lambda body, _: body.update(values)


REGISTRY = "azureml://registries/azureml/models"
REFUSED: list[tuple[str, Edit, int, str, str]] = [
    ("unknown registry", model("azureml://registries/nowhere/models/Phi-3-mini-4k-instruct/versions/15"), 404, "NotFoundError", "Registry nowhere"),
    ("unknown model", model(f"{REGISTRY}/Phi-9/versions/1"), 404, "NotFoundError", "Phi-9"),
    ("unknown version", model(f"{REGISTRY}/Phi-3-mini-4k-instruct/versions/99"), 404, "NotFoundError", "Phi-3-mini-4k-instruct:99"),
    ("Phi-3-small is not serverless", model(f"{REGISTRY}/Phi-3-small-8k-instruct/versions/6"), 400, "ModelNotSupportedByMaaS", "Phi-3-small-8k-instruct : Serverless FineTuning not supported in eastus2."),
    ("no model", drop("model"), 400, "MissingInput", "model.uri"),
    ("no training data", drop("trainingData"), 400, "MissingInput", "trainingData.uri"),
    ("no task", drop("taskType"), 400, "InvalidJobDefinition", "task"),
    ("bad task", details(taskType="chatting"), 400, "InvalidJobDefinition", "task"),
    ("a task whose rows are unknown", details(taskType="TextTranslation"), 400, "UnsupportedTask", "text_translation"),
    ("another provider", details(modelProvider="AzureOpenAI"), 400, "UnsupportedModelProvider", "AzureOpenAI"),
    ("another kind of job", top(jobType="Command"), 400, "UnsupportedJobType", "Command"),
    ("no details", top(fineTuningDetails=None), 400, "MissingFineTuningDetails", "fineTuningDetails"),
    ("no output name", top(outputs={}), 400, "MissingOutputName", "outputs.registered_model.name"),
    ("bad output name", top(outputs={"registered_model": {"assetName": "a b", "jobOutputType": "mlflow_model"}}), 400, "InvalidJobDefinition", "name"),
    ("unknown data asset", training("/subscriptions/x/workspaces/y/data/absent/versions/1"), 404, "NotFoundError", "absent:1"),
    ("data that is gone", asset("gone"), 404, "DataNotFound", "gone/rows.jsonl"),
    ("data elsewhere", training("https://example.invalid/rows.jsonl"), 400, "UnsupportedDataUri", "cannot be read"),
    ("unknown datastore", training("azureml://datastores/other/paths/x.jsonl"), 404, "NotFoundError", "other"),
    ("malformed rows", asset("bad"), 400, "InvalidTrainingData", "line 1"),
    ("unknown hyperparameter", knob(lerning_rate="1"), 400, "InvalidHyperParameter", "learning_rate"),
    ("learning rate too large for the model", knob(learning_rate="0.001"), 400, "InvalidHyperParameter", "5e-05"),
    ("learning rate is a word", knob(learning_rate="banana"), 400, "InvalidHyperParameter", "banana"),
    ("a number, not a string", knob(learning_rate=0.1), 400, "InvalidHyperParameter", "string"),
    ("epochs of nothing", knob(num_train_epochs="0"), 400, "InvalidHyperParameter", "num_train_epochs"),
    ("rank of nothing", knob(lora_r="0"), 400, "InvalidHyperParameter", "lora_r"),
    ("a schedule nobody has", knob(lr_scheduler_type="zigzag"), 400, "InvalidHyperParameter", "lr_scheduler_type"),
    ("what only a local run has", knob(use_dora="true"), 400, "InvalidHyperParameter", "use_dora"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "status", "inner", "word"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_a_job_that_the_service_would_refuse_is_refused_in_its_form(
    client: httpx.Client,
    place: str,
    data: dict[str, str],
    edit: Edit,
    status: int,
    inner: str,
    word: str,
) -> None:
    body = copy.deepcopy(job_body(data))
    edit(body["properties"], data)
    answer = client.put(f"{place}/jobs/refused", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == "UserError"
    assert word in error["message"]
    extra = {entry["type"]: entry["info"]["value"] for entry in error["additionalInfo"]}
    assert extra["InnerError"]["code"] == inner
    assert answer.headers["x-ms-response-type"] == "error"
    assert "retry-after" not in answer.headers  # it would make the SDK try a hopeless request again
    assert client.get(f"{place}/jobs/refused").status_code == 404


@pytest.mark.parametrize(
    ("options", "inner"),
    [
        (("--as-of", "2025-08-30"), "ModelRetired"),
        (("--region", "westus"), "ModelNotSupportedByMaaS"),
    ],
)
def test_the_catalogues_date_and_the_region_decide(
    tmp_path: Path, options: tuple[str, str], inner: str
) -> None:
    with running_mock(tmp_path, "--engine", "simulate", *options) as other:
        assert read_json(other.home / "server.json")[options[0][2:].replace("-", "_")] == options[1]
        context = ssl.create_default_context(cafile=other.state.ca)
        token = httpx.get(
            other.state.identity_endpoint,
            headers={"X-IDENTITY-HEADER": other.state.identity_header},
        )
        headers = {"Authorization": f"Bearer {token.json()['access_token']}"}
        where = other.settings
        base = (
            f"/subscriptions/{where.subscription_id}/resourceGroups/{where.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{where.workspace}"
        )
        with httpx.Client(base_url=other.state.url, verify=context, headers=headers) as line:
            answer = line.put(f"{base}/jobs/x", json=job_body({"good": "x"}))
        assert answer.status_code == 400
        assert inner in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/subscriptions/other/resourceGroups/mock-group/providers/Microsoft.MachineLearningServices/workspaces/mock-workspace", 404, "SubscriptionNotFound"),
        ("GET", "{place}/jobs/absent", 404, "UserError"),
        ("GET", "{place}/models/absent/versions/1", 404, "UserError"),
        ("GET", "{place}/datastores/absent", 404, "UserError"),
        ("GET", "{place}/serverlessEndpoints/absent", 404, "UserError"),
        ("POST", "{place}/jobs/absent/cancel", 404, "UserError"),
        ("GET", "/no/such/route", 404, "NotFound"),
        ("DELETE", "{place}", 405, "MethodNotAllowed"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_a_404_in_arms_form(
    client: httpx.Client, place: str, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path.format(place=place))
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "tampered"])
def test_a_request_without_a_good_token_is_401_with_a_challenge(
    client: httpx.Client, place: str, token: str
) -> None:
    good = client.headers["authorization"].removeprefix("Bearer ")
    given = {"tampered": good[:-4] + "AAAA"}.get(token, token)
    answer = client.get(place, headers={"Authorization": f"Bearer {given}".strip()})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"properties": 1}', b"\xff", b"[" * 100_000])
def test_garbage_is_a_400_and_the_server_lives_on(
    client: httpx.Client, place: str, body: bytes
) -> None:
    answer = client.put(
        f"{place}/jobs/x", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert client.get(place).status_code == 200


def test_a_body_without_end_is_cut_off(client: httpx.Client, place: str) -> None:
    answer = client.put(f"{place}/jobs/x", content=b" " * (5 * 1024 * 1024))
    assert answer.status_code == 413


def test_paths_do_not_mind_case_double_slashes_or_versions(
    client: httpx.Client, place: str
) -> None:
    url = f"{client.base_url}/{place.upper().replace('/PROVIDERS', '//PROVIDERS')}"
    assert client.get(f"{url}?api-version=2099-01-01").status_code == 200


def test_the_certificates_pass_strict_verification_and_are_renewed_in_time(tmp_path: Path) -> None:
    made = tls.ensure(tmp_path)
    assert made.key.stat().st_mode & 0o077 == 0
    kept = tls.ensure(tmp_path)
    assert kept.chain.read_bytes() == made.chain.read_bytes()
    before = made.chain.read_bytes(), made.ca.read_bytes()
    later = dt.datetime.now(tz=dt.UTC) + dt.timedelta(days=380)
    tls.ensure(tmp_path, now=later)
    assert (made.chain.read_bytes() != before[0], made.ca.read_bytes() == before[1]) == (True, True)


def test_status_and_reset_have_a_door_of_their_own(tmp_path: Path) -> None:
    with running_mock(tmp_path, "--engine", "simulate") as other:
        status = json.loads(mock_command(other.home, "status", "--json").stdout)
        assert (status["engine"], status["as_of"], status["jobs"]) == ("simulate", "2025-06-01", {})
        context = ssl.create_default_context(cafile=other.state.ca)
        with httpx.Client(base_url=other.state.url, verify=context) as line:
            assert line.post("/__mock__/reset").status_code == 401
        assert "forgotten" in mock_command(other.home, "reset").stdout


def test_secrets_are_in_no_log(mock: Mock, client: httpx.Client) -> None:
    client.get("/no/such/route")
    log = (mock.home / "server.log").read_text()
    for secret in read_json(mock.home / "secrets.json").values():
        assert secret not in log
    assert (mock.home / "secrets.json").stat().st_mode & 0o077 == 0
    assert (mock.home / "server.json").stat().st_mode & 0o077 == 0


def test_two_servers_do_not_share_a_home(mock: Mock) -> None:
    with pytest.raises(AssertionError, match="already serves"):
        mock_command(mock.home, "serve", "--detach")
