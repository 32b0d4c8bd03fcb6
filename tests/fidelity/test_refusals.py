"""What the service refuses: the exception that the SDK's user gets, status, codes and text in ARM's form."""

from __future__ import annotations

import copy
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_runner.mock_server.credentials import ensure
from maas_client.spec.hyperparameters import KNOBS, Knob
from maas_client.spec.rundir import read_json
from tests.conftest import ROW
from tests.mocking import Mock, running_mock

CALLER = Path(__file__).with_name("sdk_caller.py")
MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
EXCEPTIONS = {
    401: "ClientAuthenticationError",
    404: "ResourceNotFoundError",
    409: "ResourceExistsError",
}
"""What azure-core makes of a status; of every other one an HttpResponseError."""
FILES = {
    "good": f"{ROW}\n{ROW.replace('tap', 'door')}\n",
    "misspelt": '{"mesages": []}\n',
    "unreadable": "{\n",
    "empty": "",
    "silent": '{"messages": [{"role": "user", "content": "Where is the tap?"}]}\n',
    "stranger": ROW.replace('"role": "user"', '"role": "stranger"') + "\n",
}


@dataclass(frozen=True)
class Place:
    """A mock, as a client that no SDK stands before sees it."""

    mock: Mock
    line: httpx.Client
    token: str

    @property
    def path(self) -> str:
        state = self.mock.state
        return (
            f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
        )

    @property
    def described(self) -> dict[str, str]:
        state = self.mock.state
        return {
            "url": state.url,
            "token": self.token,
            "subscription": state.subscription_id,
            "group": state.resource_group,
            "workspace": state.workspace,
            "place": self.path,
            "id": self.line.get(self.path).json()["properties"]["workspaceId"],
            "expired": ensure(self.mock.home / "secrets.json").token("any", seconds=-10)[0],
        }

    @contextmanager
    def controls(self, settings: dict[str, Any]) -> Iterator[None]:
        """Other settings for as long as the block lasts."""
        secret = read_json(self.mock.home / "secrets.json")["control"]
        headers = {"Authorization": f"Bearer {secret}"}
        set_to = self.line.patch("/__mock__/controls", json=settings, headers=headers)
        assert set_to.status_code == 200, set_to.text
        yield
        nothing = {"quota": {}, "faults": []}
        self.line.patch("/__mock__/controls", json=nothing, headers=headers)


@contextmanager
def place_of(home: Path, *options: str) -> Iterator[Place]:
    with running_mock(home, "--engine", "simulate", "--simulate-seconds", "0.2", *options) as mock:
        context = ssl.create_default_context(cafile=mock.state.ca)
        who = {"X-IDENTITY-HEADER": mock.state.identity_header}
        given = httpx.get(f"{mock.state.identity_endpoint}?resource=x", headers=who)
        token = given.json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=mock.state.url, verify=context, headers=headers) as line:
            yield Place(mock, line, token)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A workspace with good and bad data, a model that was tuned, and an endpoint that serves it."""
    with place_of(tmp_path_factory.mktemp("here")) as place:
        store = place.line.get(f"{place.path}/datastores/workspaceblobstore").json()["properties"]
        for name in (*FILES, "gone"):
            if name in FILES:
                url = f"/mockacct.blob.core.local/{store['containerName']}/{name}/rows.jsonl"
                kind = {"x-ms-blob-type": "BlockBlob"}
                put = place.line.put(url, content=FILES[name].encode(), headers=kind)
                assert put.status_code == 201, put.text
            uri = f"azureml://datastores/workspaceblobstore/paths/{name}/rows.jsonl"
            body = {"properties": {"dataUri": uri, "dataType": "uri_file"}}
            made = place.line.put(f"{place.path}/data/{name}/versions/1", json=body)
            assert made.status_code == 201, made.text
        made = place.line.put(f"{place.path}/jobs/kept", json={"properties": job(place)})
        assert made.status_code == 201, made.text
        end = time.monotonic() + 60
        while place.line.get(f"{place.path}/models/tuned/versions/1").status_code != 200:
            assert time.monotonic() < end, place.line.get(f"{place.path}/jobs/kept").text
            time.sleep(0.05)
        made = place.line.put(f"{place.path}/serverlessEndpoints/live", json=endpoint(place))
        assert made.status_code == 201, made.text
        yield place


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A workspace in another region, after Phi-3 was retired."""
    options = ("--as-of", "2025-08-30", "--region", "westus")
    with place_of(tmp_path_factory.mktemp("elsewhere"), *options) as place:
        yield place


@pytest.fixture(scope="module")
def sdk(
    here: Place, elsewhere: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Evaluates an expression where azure-ai-ml is."""
    bundle = tmp_path_factory.mktemp("authorities") / "both.pem"
    authorities = [Path(place.mock.state.ca).read_text() for place in (here, elsewhere)]
    bundle.write_text("".join(authorities))
    bare = {
        key: value for key, value in os.environ.items() if not key.startswith(("AZURE", "ARM_"))
    }
    bare.pop("CURL_CA_BUNDLE", None)
    with subprocess.Popen(
        [sys.executable, str(CALLER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=bare | {"REQUESTS_CA_BUNDLE": str(bundle)},
        cwd=bundle.parent,  # outside a git checkout, whose state the SDK would send
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        questions, answers = child.stdin, child.stdout

        def ask(value: Any) -> None:
            questions.write(json.dumps(value) + "\n")
            questions.flush()

        def evaluate(expression: str) -> dict[str, Any]:
            ask(expression)
            answer: dict[str, Any] = json.loads(answers.readline())
            return answer

        ask({"here": here.described, "elsewhere": elsewhere.described})
        yield evaluate
        questions.close()


def job(place: Place) -> dict[str, Any]:
    data = {"uri": f"{place.path}/data/good/versions/1", "jobInputType": "uri_file"}
    return {
        "jobType": "FineTuning",
        "displayName": "x",
        "experimentName": "x",
        "fineTuningDetails": {
            "modelProvider": "Custom",
            "taskType": "chatCompletion",
            "model": {"uri": MODEL, "jobInputType": "mlflow_model"},
            "trainingData": data,
            "validationData": data,
            "hyperParameters": {"learning_rate": "0.00002"},
        },
        "outputs": {"registered_model": {"assetName": "tuned", "jobOutputType": "mlflow_model"}},
    }


def endpoint(place: Place, model: str = "") -> dict[str, Any]:
    own = f"{place.path}/models/tuned/versions/1"
    return {"properties": {"modelSettings": {"modelId": model or own}}, "location": "eastus2"}


def check(
    status: int, body: str, headers: dict[str, str], wanted: tuple[int, str, str, str]
) -> None:
    """ARM's envelope with the status, both codes and the words."""
    assert status == wanted[0], body
    error = json.loads(body)["error"]
    assert error["code"] == wanted[1]
    assert wanted[3] in error["message"]
    told = {entry["type"]: entry["info"]["value"] for entry in error.get("additionalInfo", ())}
    assert told.get("InnerError", {}).get("code", "") == wanted[2]
    if wanted[2]:
        wire = {"ComponentName", "Correlation", "Environment", "Location", "Time", "InnerError"}
        assert set(told) == wire
    assert headers["x-ms-response-type"] == "error"
    assert "retry-after" not in headers  # it would make the SDK try a hopeless request again


# The call, as azure-ai-ml's user writes it; status, code, inner code, words. `None` for the inner code's
# form: Azure Resource Manager's own errors have none.
NONE = ""
CALLS = [
    # who asks, and where
    ("ml(token='').workspaces.get('mock-workspace')", 401, "AuthenticationFailed", NONE, "missing"),
    ("ml(token='nonsense').workspaces.get('mock-workspace')", 401, "AuthenticationFailed", NONE, "invalid"),
    ("ml(token='a.b.c').jobs.get('kept')", 401, "AuthenticationFailed", NONE, "invalid"),
    ("ml(token=MOCKS['here']['expired']).jobs.get('kept')", 401, "AuthenticationFailed", NONE, "expired"),
    ("ml(token=MOCKS['elsewhere']['token']).jobs.get('kept')", 401, "AuthenticationFailed", NONE, "invalid"),
    ("ml(subscription='11111111-0000-0000-0000-000000000000').jobs.get('kept')", 404, "SubscriptionNotFound", NONE, "11111111"),
    ("ml(group='other-group').jobs.get('kept')", 404, "ResourceGroupNotFound", NONE, "other-group"),
    ("ml(workspace='other').jobs.get('kept')", 404, "ResourceNotFound", NONE, "workspaces/other"),
    ("ml(workspace='other').jobs.list()", 404, "ResourceNotFound", NONE, "workspaces/other"),
    ("ml(workspace='other').workspaces.get('other')", 404, "ResourceNotFound", NONE, "workspaces/other"),
    # what is not there
    ("ml(registry='nowhere')", 404, "UserError", "NotFoundError", "Registry nowhere"),
    ("ml(registry='azureml').models.get('Phi-9', version='1')", 404, "UserError", "NotFoundError", "Phi-9"),
    ("ml(registry='azureml').models.get(PHI, version='99')", 404, "UserError", "NotFoundError", f"{MODEL.split('/')[5]}:99"),
    ("ml().jobs.get('absent')", 404, "UserError", "NotFoundError", "Run absent"),
    ("ml().jobs.begin_cancel('absent')", 404, "UserError", "NotFoundError", "Run absent"),
    ("ml().jobs.begin_delete('absent')", 404, "UserError", "NotFoundError", "Run absent"),
    ("ml().jobs.archive('absent')", 404, "UserError", "NotFoundError", "Run absent"),
    ("ml().models.get('absent', version='1')", 404, "UserError", "NotFoundError", "Model absent:1"),
    ("ml().models.archive('tuned', version='9')", 404, "UserError", "NotFoundError", "Model tuned:9"),
    ("ml().models.list(name='absent')", 404, "UserError", "NotFoundError", "Model absent"),
    ("ml().data.get('absent', version='1')", 404, "UserError", "NotFoundError", "absent:1"),
    ("ml().data.archive('absent')", 404, "UserError", "NotFoundError", "absent"),
    ("ml().datastores.get('other')", 404, "UserError", "NotFoundError", "Datastore other"),
    ("ml().serverless_endpoints.get('absent')", 404, "UserError", "NotFoundError", "absent"),
    ("ml().serverless_endpoints.get_keys('absent')", 404, "UserError", "NotFoundError", "absent"),
    ("ml().marketplace_subscriptions.get('absent')", 404, "UserError", "NotFoundError", "absent"),
    # the model of a job
    ("submit(model='azureml://registries/nowhere/models/Phi-3-mini-4k-instruct/versions/15')", 404, "UserError", "NotFoundError", "Registry nowhere"),
    ("submit(model=f'{REGISTRY}/Phi-9/versions/1')", 404, "UserError", "NotFoundError", "Phi-9"),
    ("submit(model=f'{REGISTRY}/{PHI}/versions/99')", 404, "UserError", "NotFoundError", "Phi-3-mini-4k-instruct:99"),
    ("submit(model=f'{REGISTRY}/Phi-3-small-8k-instruct/versions/6')", 400, "UserError", "ModelNotSupportedByMaaS", "Phi-3-small-8k-instruct : Serverless FineTuning not supported in eastus2."),
    ("submit('elsewhere')", 400, "UserError", "ModelNotSupportedByMaaS", "Phi-3-mini-4k-instruct : Serverless FineTuning not supported in westus."),
    ("submit('elsewhere', model=f'{REGISTRY}/Phi-3.5-mini-instruct/versions/7')", 400, "UserError", "ModelRetired", "was retired on 2025-08-30"),
    # its data
    ("submit(training_data=asset('absent'))", 404, "UserError", "NotFoundError", "absent:1"),
    ("submit(training_data='azureml:absent:3')", 404, "UserError", "NotFoundError", "absent:3"),
    ("submit(training_data=asset('gone'))", 404, "UserError", "DataNotFound", "gone/rows.jsonl"),
    ("submit(validation_data=asset('gone'))", 404, "UserError", "DataNotFound", "validationData"),
    ("submit(training_data='https://example.invalid/rows.jsonl')", 400, "UserError", "UnsupportedDataUri", "cannot be read"),
    ("submit(training_data='azureml://datastores/other/paths/x.jsonl')", 404, "UserError", "NotFoundError", "Datastore other"),
    ("submit(training_data=asset('misspelt'))", 400, "UserError", "InvalidTrainingData", "line 1"),
    ("submit(training_data=asset('unreadable'))", 400, "UserError", "InvalidTrainingData", "line 1"),
    ("submit(training_data=asset('silent'))", 400, "UserError", "InvalidTrainingData", "line 1"),
    ("submit(training_data=asset('stranger'))", 400, "UserError", "InvalidTrainingData", "line 1"),
    ("submit(training_data=asset('empty'))", 400, "UserError", "InvalidTrainingData", "holds no row"),
    ("submit(validation_data=asset('misspelt'))", 400, "UserError", "InvalidTrainingData", "line 1"),
    # its task, name and output
    ("submit(task='chatting')", 400, "UserError", "InvalidJobDefinition", "task"),
    ("submit(task=FineTuningTaskType.TEXT_TRANSLATION)", 400, "UserError", "UnsupportedTask", "text_translation"),
    ("submit(name='a' * 256)", 400, "UserError", "InvalidJobName", "is not a job name"),
    ("submit(name='-first')", 400, "UserError", "InvalidJobName", "is not a job name"),
    ("submit(name='kept', hyperparameters={'learning_rate': '0.00003'})", 409, "UserError", "ConflictError", "kept already exists"),
    ("ml().jobs.begin_cancel('kept')", 400, "UserError", "RunInTerminalState", "Completed"),
    # each hyperparameter: unknown, out of bounds, of the wrong type
    ("knob(lerning_rate='1')", 400, "UserError", "InvalidHyperParameter", "learning_rate"),
    ("knob(learning_rate='banana')", 400, "UserError", "InvalidHyperParameter", "banana"),
    ("knob(learning_rate='0.001')", 400, "UserError", "InvalidHyperParameter", "5e-05"),
    ("knob(learning_rate='1e-9')", 400, "UserError", "InvalidHyperParameter", "5e-07"),
    ("knob(learning_rate='nan')", 400, "UserError", "InvalidHyperParameter", "learning_rate"),
    ("knob(num_train_epochs='0')", 400, "UserError", "InvalidHyperParameter", "num_train_epochs"),
    ("knob(num_train_epochs='two')", 400, "UserError", "InvalidHyperParameter", "num_train_epochs"),
    ("knob(per_device_train_batch_size='0')", 400, "UserError", "InvalidHyperParameter", "per_device_train_batch_size"),
    ("knob(gradient_accumulation_steps='-1')", 400, "UserError", "InvalidHyperParameter", "gradient_accumulation_steps"),
    ("knob(max_seq_length='many')", 400, "UserError", "InvalidHyperParameter", "max_seq_length"),
    ("knob(warmup_ratio='2')", 400, "UserError", "InvalidHyperParameter", "warmup_ratio"),
    ("knob(weight_decay='heavy')", 400, "UserError", "InvalidHyperParameter", "weight_decay"),
    ("knob(lora_r='0')", 400, "UserError", "InvalidHyperParameter", "lora_r"),
    ("knob(lora_alpha='0')", 400, "UserError", "InvalidHyperParameter", "lora_alpha"),
    ("knob(lora_dropout='1.5')", 400, "UserError", "InvalidHyperParameter", "lora_dropout"),
    ("knob(apply_lora='perhaps')", 400, "UserError", "InvalidHyperParameter", "apply_lora"),
    ("knob(lr_scheduler_type='zigzag')", 400, "UserError", "InvalidHyperParameter", "lr_scheduler_type"),
    ("knob(precision='7')", 400, "UserError", "InvalidHyperParameter", "precision"),
    ("knob(seed='x')", 400, "UserError", "InvalidHyperParameter", "seed"),
    ("knob(use_dora='true')", 400, "UserError", "InvalidHyperParameter", "use_dora"),
    # endpoints
    ("deploy('another', tuned('1'))", 400, "UserError", "ModelAlreadyDeployed", "already deployed as live"),
    ("deploy('fresh', tuned('9'))", 404, "UserError", "NotFoundError", "tuned:9"),
    ("deploy('live', tuned('9'))", 404, "UserError", "NotFoundError", "tuned:9"),
    ("deploy('live', f'{REGISTRY}/{PHI}')", 409, "UserError", "ConflictError", "live already serves another model"),
    ("deploy('fresh', f'{REGISTRY}/Phi-9')", 404, "UserError", "NotFoundError", "Phi-9"),
    ("deploy('x', tuned('1'))", 400, "UserError", "InvalidEndpointName", "is not an endpoint name"),
    ("deploy('1st-endpoint', tuned('1'))", 400, "UserError", "InvalidEndpointName", "is not an endpoint name"),
    ("deploy('fresh', f'{REGISTRY}/{PHI}', 'elsewhere')", 400, "UserError", "ModelNotSupportedByMaaS", "Serverless deployment not supported in westus"),
    ("deploy('fresh', f'{REGISTRY}/Phi-3.5-mini-instruct', 'elsewhere')", 400, "UserError", "ModelRetired", "was retired on 2025-08-30"),
    # the marketplace
    ("subscribe('phi', f'{REGISTRY}/{PHI}')", 400, "UserError", "MarketplaceSubscriptionNotSupported", "Microsoft model"),
    ("subscribe('phi_4', 'azureml://registries/azureml-meta/models/Llama-2-7b')", 400, "UserError", "InvalidSubscriptionName", "phi_4"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "wanted"), [(row[0], row[1:]) for row in CALLS], ids=[row[0] for row in CALLS]
)
def test_a_wrong_call_raises_what_the_services_user_would_get(
    sdk: Callable[[str], dict[str, Any]], expression: str, wanted: tuple[int, str, str, str]
) -> None:
    got = sdk(expression)
    assert got["raised"] == EXCEPTIONS.get(wanted[0], "HttpResponseError"), got
    assert f"({wanted[1]})" in got["words"]
    assert wanted[3] in got["words"]
    check(got["status"], got["body"], got["headers"], wanted)


QUOTAS = [
    ({"jobs": 0}, "submit(name='one-more')", "0 jobs"),
    ({"models": 1}, "submit(name='one-more')", "1 models"),
    ({"endpoints": 1}, "deploy('fresh', f'{REGISTRY}/{PHI}')", "1 endpoints"),
]


@pytest.mark.parametrize(("quota", "expression", "words"), QUOTAS)
def test_a_used_up_quota_is_a_403_that_says_so(
    here: Place,
    sdk: Callable[[str], dict[str, Any]],
    quota: dict[str, int],
    expression: str,
    words: str,
) -> None:
    with here.controls({"quota": quota}):
        got = sdk(expression)
    assert got["raised"] == "HttpResponseError", got
    check(got["status"], got["body"], got["headers"], (403, "UserError", "QuotaExceeded", words))


Edit = Callable[[dict[str, Any]], Any]


def put_job(edit: Edit) -> Callable[[Place], Any]:
    """A good job but for what the SDK would never send."""

    def build(place: Place) -> dict[str, Any]:
        body = copy.deepcopy(job(place))
        edit(body)
        return {"properties": body}

    return build


def details(**values: Any) -> Callable[[Place], Any]:
    return put_job(lambda body: body["fineTuningDetails"].update(values))


def given(body: Any) -> Callable[[Place], Any]:
    return lambda _: body


NOTHING = given(None)
SAME = "azureml://datastores/workspaceblobstore/paths/"
# What no SDK can say, over plain REST: method, path in the workspace, body; status, codes, words.
WIRE: list[tuple[str, str, Callable[[Place], Any], int, str, str, str]] = [
    ("PUT", "jobs/refused", details(model=None), 400, "UserError", "MissingInput", "model.uri"),
    ("PUT", "jobs/refused", details(trainingData=None), 400, "UserError", "MissingInput", "trainingData.uri"),
    ("PUT", "jobs/refused", details(taskType=None), 400, "UserError", "InvalidJobDefinition", "task"),
    ("PUT", "jobs/refused", details(modelProvider="AzureOpenAI"), 400, "UserError", "UnsupportedModelProvider", "AzureOpenAI"),
    ("PUT", "jobs/refused", details(hyperParameters={"learning_rate": 0.1}), 400, "UserError", "InvalidHyperParameter", "string"),
    ("PUT", "jobs/refused", details(hyperParameters=["x"]), 400, "UserError", "InvalidHyperParameter", "names to strings"),
    ("PUT", "jobs/refused", put_job(lambda body: body.update(fineTuningDetails=None)), 400, "UserError", "MissingFineTuningDetails", "fineTuningDetails"),
    ("PUT", "jobs/refused", put_job(lambda body: body.update(outputs={})), 400, "UserError", "MissingOutputName", "outputs.registered_model.name"),
    ("PUT", "jobs/refused", put_job(lambda body: body["outputs"]["registered_model"].update(assetName="a b")), 400, "UserError", "InvalidJobDefinition", "name"),
    ("PUT", "jobs/refused", put_job(lambda body: body.update(jobType="Sweep")), 400, "UserError", "UnsupportedJobType", "Sweep"),
    ("PUT", "jobs/refused", given({}), 400, "UserError", "InvalidRequestBody", "properties"),
    ("PUT", "jobs/refused", given({"name": "other", "properties": {}}), 400, "UserError", "NameMismatch", "name"),
    ("PUT", "data/a%20b/versions/1", given({"properties": {"dataUri": f"{SAME}x", "dataType": "uri_file"}}), 400, "UserError", "InvalidAssetName", "a b"),
    ("PUT", "data/new/versions/1", given({"properties": {"dataType": "uri_file"}}), 400, "UserError", "MissingDataUri", "dataUri"),
    ("PUT", "data/new/versions/1", given({"properties": {"dataUri": f"{SAME}x", "dataType": "table"}}), 400, "UserError", "InvalidDataType", "uri_file"),
    ("PUT", "data/good/versions/1", given({"properties": {"dataUri": f"{SAME}other", "dataType": "uri_file"}}), 409, "UserError", "ConflictError", "cannot be updated"),
    ("PUT", "data/good", given({"properties": {"dataType": "mltable"}}), 409, "UserError", "ConflictError", "uri_file"),
    ("PUT", "data/good", given({"properties": {"isArchived": "yes"}}), 400, "UserError", "InvalidRequestBody", "isArchived must be a bool"),
    ("PUT", "models/tuned", given({"properties": {"tags": ["a"]}}), 400, "UserError", "InvalidRequestBody", "tags must be a dict"),
    ("PUT", "models/tuned/versions/1", given({"properties": {"description": 1}}), 400, "UserError", "InvalidRequestBody", "description"),
    ("PUT", "models/tuned/versions/1", given({"properties": {"modelUri": f"{SAME}other"}}), 409, "UserError", "ConflictError", "cannot be updated"),
    ("DELETE", "models/tuned/versions/1", NOTHING, 409, "UserError", "ConflictError", "in use by endpoint live"),
    ("DELETE", "models/absent/versions/1", NOTHING, 404, "UserError", "NotFoundError", "absent:1"),
    ("PUT", "serverlessEndpoints/fresh", given({"properties": {}}), 400, "UserError", "InvalidModelId", "is not a model"),
    ("PUT", "serverlessEndpoints/fresh", lambda place: endpoint(place, MODEL.replace("/15", "/99")), 404, "UserError", "NotFoundError", "Phi-3-mini-4k-instruct:99"),
    ("PUT", "serverlessEndpoints/fresh", lambda place: endpoint(place, f"{place.path}/models/tuned"), 400, "UserError", "InvalidModelId", "has no version"),
    ("POST", "serverlessEndpoints/live/regenerateKeys", given({"keyType": "Third"}), 400, "UserError", "InvalidKeyType", "Primary or Secondary"),
    ("POST", "serverlessEndpoints/live/regenerateKeys", given({"keyType": "Primary", "keyValue": "short"}), 400, "UserError", "InvalidKey", "at least 8"),
    ("PUT", "marketplaceSubscriptions/phi", given({"properties": {"modelId": "Llama-2-7b"}}), 400, "UserError", "InvalidModelId", "Llama-2-7b"),
    ("DELETE", "", NOTHING, 405, "MethodNotAllowed", NONE, "takes GET"),
    ("GET", "no/such/route", NOTHING, 404, "NotFound", NONE, "no route"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "wanted"),
    [(*row[:3], row[3:]) for row in WIRE],
    ids=[f"{row[0]} {row[1]} {row[5] or row[4]}" for row in WIRE],
)
def test_what_no_sdk_would_send_is_refused_in_the_same_form(
    here: Place,
    method: str,
    path: str,
    body: Callable[[Place], Any],
    wanted: tuple[int, str, str, str],
) -> None:
    url = f"{here.path}/{path}".rstrip("/")
    answer = here.line.request(method, url, json=body(here))
    check(answer.status_code, answer.text, dict(answer.headers), wanted)


def wrong_values(knob: Knob) -> Iterator[str]:
    """Of the wrong type, too small, too large."""
    if knob.kind != "text":
        yield "zigzag"
    if knob.low is not None:
        yield f"{knob.low - (0 if knob.low_open else 1):g}"
    if knob.high is not None:
        yield f"{knob.high + 1:.0f}"


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, knob in KNOBS.items() for text in wrong_values(knob)]
)
def test_each_hyperparameter_has_its_type_and_bounds(here: Place, name: str, text: str) -> None:
    body = details(hyperParameters={name: text})(here)
    answer = here.line.put(f"{here.path}/jobs/refused", json=body)
    words = f"hyperparameters.{name} is '{text}'"
    if name == "resume_from_checkpoint":  # a text on this machine, a choice at the service
        words = f"hyperparameters.{name}: {text} is not done by"
    wanted = (400, "UserError", "InvalidHyperParameter", words)
    check(answer.status_code, answer.text, dict(answer.headers), wanted)


def test_a_refused_job_is_not_there(here: Place, sdk: Callable[[str], dict[str, Any]]) -> None:
    assert sdk("knob(learning_rate='banana')")["raised"] == "HttpResponseError"
    assert here.line.get(f"{here.path}/jobs/refused").status_code == 404


def test_the_same_job_again_is_answered_as_before(
    here: Place, sdk: Callable[[str], dict[str, Any]]
) -> None:
    assert sdk("submit(name='kept')")["raised"] is None
    assert here.line.get(f"{here.path}/models/tuned/versions/2").status_code == 404


def test_the_registry_archives_what_is_retired(sdk: Callable[[str], dict[str, Any]]) -> None:
    names = "[model.name for model in ml('elsewhere', registry='azureml').models.list()]"
    assert sdk(names)["words"] == "['Phi-4-mini-instruct', 'Phi-4']"
    assert (
        sdk("ml('elsewhere', registry='azureml').models.get(PHI, version='15')")["raised"] is None
    )


def test_there_are_enough_of_them() -> None:
    assert len(CALLS) + len(QUOTAS) + len(WIRE) >= 40
