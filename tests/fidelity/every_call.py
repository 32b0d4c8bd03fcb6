"""Every call that azure-ai-ml's users make for serverless fine-tuning, each as a check of its own.

    python every_call.py TRAIN.jsonl FOLDER     prints one JSON object: check -> "ok", or what went wrong

Like notebook.py it imports nothing of ours and is told where to go by the environment; with
`CLOUD_KEYWORDS` it points MLClient at the mock by keywords instead, and where no cloud is named, a
proxy leads the public cloud's names there. What the SDK cannot say, or says wrongly, goes over plain
REST. A check that fails does not stop the next one.
"""

# mypy: ignore-errors
from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

import requests  # noqa: E402
from azure.ai.ml import Input, MLClient, Output, load_job  # noqa: E402
from azure.ai.ml.entities import Data, MarketplaceSubscription, ServerlessEndpoint  # noqa: E402
from azure.ai.ml.finetuning import FineTuningTaskType, create_finetuning_job  # noqa: E402
from azure.core.credentials import AzureKeyCredential  # noqa: E402
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError  # noqa: E402
from azure.identity import DefaultAzureCredential  # noqa: E402

TRAIN, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
SUBSCRIPTION, GROUP, WORKSPACE = (
    os.environ[key]
    for key in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME")
)
CLOUD = json.loads(os.environ.get("CLOUD_KEYWORDS", "{}"))
METADATA = os.environ.get("ARM_CLOUD_METADATA_URL", "").partition("/metadata")[0]
PUBLIC = not CLOUD and not METADATA
"""Whether it goes by the public cloud's names, through a proxy."""
URL = "https://management.azure.com" if PUBLIC else METADATA
if CLOUD:
    URL = CLOUD["cloud_metadata"]["resource_manager"].rstrip("/")
PLACE = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
    f"/providers/Microsoft.MachineLearningServices/workspaces/{WORKSPACE}"
)
NEW, OLD = "2024-10-01-preview", "2024-01-01-preview"
PHI = "Phi-3-mini-4k-instruct"
MODEL = f"azureml://registries/azureml/models/{PHI}/versions/15"
FAMILY = {
    "Phi-3-mini-4k-instruct", "Phi-3-mini-128k-instruct", "Phi-3-small-8k-instruct",
    "Phi-3-small-128k-instruct", "Phi-3-medium-4k-instruct", "Phi-3-medium-128k-instruct",
    "Phi-3.5-mini-instruct", "Phi-4-mini-instruct",
    "Phi-3.5-MoE-instruct",
    "Phi-4",
}  # fmt: skip
ENDED = ("Completed", "Failed", "Canceled")

CHECKS: dict[str, Any] = {}
made: dict[str, Any] = {}
"""What a check leaves for the later ones."""


def check(name: str) -> Any:
    def keep(function: Any) -> Any:
        CHECKS[name] = function
        return function

    return keep


def equal(seen: Any, wanted: Any) -> None:
    assert seen == wanted, f"{seen!r}, not {wanted!r}"


def quiet(call: Any, *arguments: Any, **keywords: Any) -> str:
    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        call(*arguments, **keywords)
    return words.getvalue()


def refused(kind: type[HttpResponseError], status: int, words: str, call: Any, *rest: Any) -> None:
    try:
        call(*rest)
    except kind as caught:
        error = caught
    else:
        raise AssertionError("it was not refused")
    equal(error.status_code, status)
    assert words in str(error), f"{words!r} is not in {error}"


def token() -> str:
    return DefaultAzureCredential().get_token(f"{URL}/.default").token


session = requests.Session()


def rest(method: str, path: str, version: str = NEW, body: Any = None, wanted: int = 200) -> Any:
    """A call that no SDK stands before."""
    link = path if path.startswith("https") else f"{URL}{path}"
    query = {} if "api-version=" in link else {"api-version": version}
    reply = session.request(method, link, params=query, json=body, timeout=60)
    assert reply.status_code == wanted, f"{method} {path}: {reply.status_code} {reply.text[:300]}"
    return reply


def job(name: str, **changes: Any) -> Any:
    return create_finetuning_job(
        **{
            "task": FineTuningTaskType.CHAT_COMPLETION,
            "training_data": made["data"].id,
            "validation_data": made["data"].id,
            "hyperparameters": {
                "per_device_train_batch_size": "1",
                "learning_rate": "0.00002",
                "num_train_epochs": "1",
            },
            "model": MODEL,
            "display_name": f"display {name}",
            "name": name,
            "experiment_name": "phi",
            "tags": {"foo_tag": "bar"},
            "properties": {"my_property": "my_value"},
            "output_model_name_prefix": f"tuned-{name}",
            **changes,
        }
    )


def copy(name: str, **changes: Any) -> Any:
    """The first job again under another name, over plain REST."""
    body = rest("GET", f"{PLACE}/jobs/one").json()["properties"]
    output = {"assetName": "spare", "jobOutputType": "mlflow_model"}
    body |= {"outputs": {"registered_model": output}, **changes}
    return rest("PUT", f"{PLACE}/jobs/{name}", body={"properties": body}, wanted=201)


def wait(name: str) -> str:
    while (status := str(client.jobs.get(name).status).rpartition(".")[2].title()) not in ENDED:
        time.sleep(0.05)
    return status


def names(entries: Any) -> list[str | None]:
    return [entry and entry.name for entry in entries]


# --- who asks, and where ---------------------------------------------------------------------------


@check("workspaces.get")
def _() -> None:
    found = client.workspaces.get(WORKSPACE)
    made["workspace"] = found
    equal((found.name, found.location, bool(found.discovery_url)), (WORKSPACE, "eastus2", True))
    assert found.id.endswith(PLACE), found.id
    assert len(found._workspace_id) == 36, found._workspace_id


@check("workspaces.list, both scopes")
def _() -> None:
    equal(names(client.workspaces.list()), [WORKSPACE])
    equal(names(client.workspaces.list(scope="subscription")), [WORKSPACE])


@check("MLClient of a workspace that is not there")
def _() -> None:
    other = MLClient(DefaultAzureCredential(), SUBSCRIPTION, GROUP, "nowhere", **CLOUD)
    refused(ResourceNotFoundError, 404, "nowhere", other.jobs.get, "any")


@check("a service principal logs in")
def _() -> None:
    lent = {} if PUBLIC else {"AZURE_AUTHORITY_HOST": URL}
    lent |= {
        "AZURE_TENANT_ID": "00000000-aaaa-bbbb-cccc-000000000001",
        "AZURE_CLIENT_ID": "00000000-aaaa-bbbb-cccc-000000000003",
        "AZURE_CLIENT_SECRET": "any",
    }
    kept = {key: os.environ.pop(key, None) for key in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")}
    os.environ.update(lent)
    try:
        credential = DefaultAzureCredential(disable_instance_discovery=not PUBLIC)
        principal = MLClient(credential, SUBSCRIPTION, GROUP, WORKSPACE, **CLOUD)
        equal(principal.workspaces.get(WORKSPACE).name, WORKSPACE)
    finally:
        for key in lent:
            del os.environ[key]
        os.environ.update({key: value for key, value in kept.items() if value})


@check("a token is a JWT with a tenant")
def _() -> None:
    import jwt

    claims = jwt.decode(token(), options={"verify_signature": False})
    assert claims["tid"], claims
    equal(claims["aud"].rstrip("/"), URL)


# --- the registry ----------------------------------------------------------------------------------


@check("registry.models.get, label and version")
def _() -> None:
    latest = registry.models.get(PHI, label="latest")
    equal((latest.name, latest.version), (PHI, "15"))
    equal(registry.models.get(PHI, version="14").version, "14")
    refused(ResourceNotFoundError, 404, f"{PHI}:99", registry.models.get, PHI, "99")


@check("registry.models.list")
def _() -> None:
    equal(set(names(registry.models.list())), FAMILY)
    versions = [entry.version for entry in registry.models.list(name=PHI)]
    equal(versions, ["15", "14", "13", "12", "11", "10"])


@check("registry: tags, properties, dates of the whole family")
def _() -> None:
    for name in sorted(FAMILY):
        found = registry.models.get(name, label="latest")
        for key in ("task", "license", "author"):
            assert found.tags[key], (name, key)
        for key in ("finetune-recommended-sku", "inference-recommended-sku"):
            assert key in found.properties, (name, key)
        assert found.creation_context.created_at, name
        serverless = "small" not in name
        equal("maas-finetuning-deploy-regions" in found.tags, serverless)
        if serverless:
            assert "eastus2" in found.tags["maas-finetuning-deploy-regions"], name
        ends = found.tags.get("FinetuneRetirementDate")
        equal(ends, None if name.startswith("Phi-4") else "2025-08-30")


@check("registry: system metadata, over plain REST")
def _() -> None:
    host = "https://eastus.api.azureml.ms" if PUBLIC else URL
    found = rest(
        "GET", f"{host}/registrymanagement/v1.0/registries/azureml/discovery", "v1.0"
    ).json()
    plane = (
        f"{found['primaryRegionResourceProviderUri']}mferp/managementfrontend"
        f"/subscriptions/{found['subscriptionId']}/resourceGroups/{found['resourceGroup']}"
        "/providers/Microsoft.MachineLearningServices/registries/azureml/models"
    )
    for name in sorted(FAMILY):
        versions = rest("GET", f"{plane}/{name}/versions?$top=1").json()["value"]
        equal(set(versions[0]), {"id", "name", "type", "systemData", "properties"})
        metadata = versions[0]["properties"]["systemMetadata"]
        equal("maasFinetuning" in metadata, "small" not in name)
        equal("deprecation" in metadata, not name.startswith("Phi-4"))
        if "small" not in name:
            assert "eastus2" in metadata["maasFinetuning"]["maasFinetuningDeployRegions"], name


@check("registry of another name")
def _() -> None:
    def other() -> None:
        MLClient(DefaultAzureCredential(), registry_name="nowhere", **CLOUD)

    refused(ResourceNotFoundError, 404, "nowhere", other)


# --- data and datastores ---------------------------------------------------------------------------


@check("datastores.list, get, get_default")
def _() -> None:
    equal(names(client.datastores.list()), ["workspaceblobstore", "workspaceartifactstore"])
    equal(client.datastores.get_default().name, "workspaceblobstore")
    secret = client.datastores.get("workspaceblobstore", include_secrets=True)
    assert secret.credentials.sas_token, secret.credentials


@check("data.create_or_update: new, again, next, other")
def _() -> None:
    def put(**words: Any) -> Any:
        return client.data.create_or_update(Data(type="uri_file", name="train", **words))

    refused(ResourceNotFoundError, 404, "train:1", client.data.get, "train", "1")
    made["data"] = put(path=str(TRAIN), version="1", description="rows", tags={"a": "b"})
    again = put(path=str(TRAIN), version="1", description="rows", tags={"a": "b"})
    equal((again.id, again.description, dict(again.tags)), (made["data"].id, "rows", {"a": "b"}))
    equal(put(path=str(TRAIN)).version, "2")
    other = FOLDER / "other.jsonl"
    other.write_text(TRAIN.read_text() + "\n")
    refused(
        ResourceExistsError, 409, "cannot be updated", lambda: put(path=str(other), version="1")
    )


@check("data.get: version and label")
def _() -> None:
    equal(client.data.get("train", version="1").id, made["data"].id)
    equal(client.data.get("train", label="latest").version, "2")


@check("data.list: containers and versions")
def _() -> None:
    containers = list(client.data.list())
    equal(names(containers), ["train"])
    equal(containers[0].latest_version, "2")
    equal([entry.version for entry in client.data.list(name="train")], ["2", "1"])


@check("data.archive, restore: one version, and all")
def _() -> None:
    def versions(view: str) -> list[str]:
        return [entry.version for entry in client.data.list("train", list_view_type=view)]

    client.data.archive("train", version="2")
    equal([versions(v) for v in ("ActiveOnly", "ArchivedOnly", "All")], [["1"], ["2"], ["2", "1"]])
    client.data.restore("train", version="2")
    equal(versions("ActiveOnly"), ["2", "1"])
    client.data.archive("train")
    equal(names(client.data.list()), [])
    equal(names(client.data.list(list_view_type="ArchivedOnly")), ["train"])
    client.data.restore("train")
    equal(names(client.data.list()), ["train"])


# --- the marketplace -------------------------------------------------------------------------------


def subscribe(name: str, model: str) -> Any:
    wish = MarketplaceSubscription(model_id=model, name=name)
    return client.marketplace_subscriptions.begin_create_or_update(wish).result()


@check("marketplace_subscriptions: a third party's model")
def _() -> None:
    operations = client.marketplace_subscriptions
    model = "azureml://registries/azureml-meta/models/Llama-2-7b"
    equal(str(subscribe("llama", model).status).lower(), "subscribed")
    equal(operations.get("llama").model_id, model)
    equal(names(operations.list()), ["llama"])
    operations.begin_delete("llama").result()
    equal(names(operations.list()), [])


@check("marketplace_subscriptions: Microsoft's are refused")
def _() -> None:
    model = f"azureml://registries/azureml/models/{PHI}"
    refused(HttpResponseError, 400, "Microsoft model", subscribe, "phi", model)


@check("marketplace: a long-running operation")
def _() -> None:
    path = f"{PLACE}/marketplaceSubscriptions/slow"
    body = {"properties": {"modelId": "azureml://registries/azureml-meta/models/Llama-2-7b"}}
    reply = rest("PUT", path, OLD, body, 201)
    shown = reply.json()["properties"]
    equal(shown["marketplaceSubscriptionStatus"], "PendingFulfillmentStart")
    equal(shown["provisioningState"], "Creating")
    states = follow(reply.headers["Azure-AsyncOperation"])
    equal(states[0], "InProgress")
    equal(states[-1], "Succeeded")
    equal(
        rest("GET", path, OLD).json()["properties"]["marketplaceSubscriptionStatus"], "Subscribed"
    )


def follow(link: str) -> list[str]:
    """An operation's states until it is over."""
    assert "mfeOperationsStatus/oeidp:" in link.replace("%3A", ":"), link
    states = []
    while not states or states[-1] not in ("Succeeded", "Failed", "Canceled"):
        if states:
            time.sleep(0.05)
        states.append(rest("GET", link).json()["status"])
    return states


# --- jobs ------------------------------------------------------------------------------------------


@check("jobs.create_or_update: Running, and every field comes back")
def _() -> None:
    put = client.jobs.create_or_update(job("one"))
    equal(put.status, "Running")
    equal((put.name, put.display_name, put.experiment_name), ("one", "display one", "phi"))
    equal(dict(put.tags), {"foo_tag": "bar"})
    equal(put.task.lower(), "chatcompletion")
    equal(put.hyperparameters["learning_rate"], "0.00002")
    equal(put.properties["my_property"], "my_value")
    equal(put.properties["_fineTuningJobType"], "MaaS")
    equal(put.properties["azureml.ModelName"], PHI)
    equal(put.outputs["registered_model"]["name"], "tuned-one")
    assert put.creation_context.created_at, put.creation_context


@check("jobs.stream to the end")
def _() -> None:
    words = quiet(client.jobs.stream, "one")
    assert "Streaming user_logs/std_log.txt" in words, words
    equal(words.count("'loss':"), 20)


@check("jobs.get: completed, with its page")
def _() -> None:
    done = client.jobs.get("one")
    equal(done.status, "Completed")
    assert "/runs/one?wsid=" in done.studio_url, done.studio_url
    equal(done.outputs["registered_model"]["name"], "tuned-one")


@check("jobs.create_or_update: a class without validation data")
def _() -> None:
    from azure.ai.ml.entities._job.finetuning.custom_model_finetuning_job import (
        CustomModelFineTuningJob,
    )

    bare = CustomModelFineTuningJob(
        task="chatCompletion",
        model=Input(type="mlflow_model", path=MODEL),
        training_data=Input(type="uri_file", path=made["data"].id),
        name="bare",
        outputs={"registered_model": Output(type="mlflow_model", name="tuned-bare")},
    )
    equal(client.jobs.create_or_update(bare).name, "bare")
    equal(wait("bare"), "Completed")


@check("jobs.create_or_update: a YAML file and a local path")
def _() -> None:
    (FOLDER / "job.yaml").write_text(
        "type: finetuning\nname: filed\ntask: chat_completion\nmodel_provider: custom\n"
        f"model: {{path: {MODEL!r}, type: mlflow_model}}\n"
        f"training_data: {{path: {TRAIN}, type: uri_file}}\n"
        "hyperparameters: {learning_rate: '0.00002'}\n"
        "outputs: {registered_model: {name: from-file, type: mlflow_model}}\n"
    )
    client.jobs.create_or_update(load_job(FOLDER / "job.yaml"))
    equal(wait("filed"), "Completed")


@check("create_finetuning_job without validation data")
def _() -> None:
    equal(job("unchecked", validation_data=None).name, "unchecked")


@check("jobs.create_or_update again: same body, other body")
def _() -> None:
    equal(client.jobs.create_or_update(load_job(FOLDER / "job.yaml")).name, "filed")
    other = load_job(FOLDER / "job.yaml")
    other.hyperparameters["learning_rate"] = "0.00003"
    refused(ResourceExistsError, 409, "filed", client.jobs.create_or_update, other)


@check("jobs.create_or_update of a fetched job: new tags")
def _() -> None:
    fetched = client.jobs.get("one")
    fetched.tags["more"] = "yes"
    fetched.display_name = "renamed"
    client.jobs.create_or_update(fetched)
    seen = client.jobs.get("one")
    equal((dict(seen.tags), seen.display_name), ({"foo_tag": "bar", "more": "yes"}, "renamed"))


@check("PUT of a job as it was read: archived, renamed, other tags")
def _() -> None:
    path = f"{PLACE}/jobs/one"
    for version in (NEW, OLD):  # with the nulls and the keys of either shape
        body = rest("GET", path, version).json()["properties"]
        changed = body | {"isArchived": True, "tags": {"only": version}, "displayName": "by PUT"}
        shown = rest("PUT", path, version, {"properties": changed}).json()["properties"]
        equal((shown["isArchived"], shown["tags"]), (True, {"only": version}))
        shown = rest("PUT", path, version, {"properties": body}).json()["properties"]
        equal((shown["isArchived"], shown["tags"]), (False, body["tags"]))
    body["experimentName"] = "another"
    rest("PUT", path, NEW, {"properties": body}, 409)


@check("jobs.update: tags, display name")
def _() -> None:
    client.jobs.update("one", tags={"foo_tag": "baz"}, display_name="again")
    seen = client.jobs.get("one")
    equal((dict(seen.tags), seen.display_name), ({"foo_tag": "baz", "more": "yes"}, "again"))


@check("jobs.begin_cancel")
def _() -> None:
    client.jobs.create_or_update(job("stopped"))
    client.jobs.begin_cancel("stopped").result()
    equal(client.jobs.get("stopped").status, "Canceled")


@check("a cancellation asked for, then obeyed")
def _() -> None:
    copy("halted")
    reply = rest("POST", f"{PLACE}/jobs/halted/cancel", wanted=202)
    seen = [rest("GET", f"{PLACE}/jobs/halted").json()["properties"]["status"]]
    while session.get(reply.headers["Location"], timeout=60).status_code == 202:
        time.sleep(0.02)
    seen.append(rest("GET", f"{PLACE}/jobs/halted").json()["properties"]["status"])
    assert seen[0] in ("CancelRequested", "Canceled"), seen
    equal(seen[-1], "Canceled")


@check("jobs.list: the newest first")
def _() -> None:
    wanted = ["halted", "stopped", "filed", "bare", "one"]
    equal(names(client.jobs.list()), wanted)


@check("jobs.archive, restore, list view types")
def _() -> None:
    client.jobs.archive("stopped")
    shown = {
        view: [
            entry["name"]
            for entry in rest("GET", f"{PLACE}/jobs?listViewType={view}&api-version={OLD}").json()["value"]
        ]
        for view in ("ActiveOnly", "ArchivedOnly", "All")
    }  # fmt: skip
    equal(shown["ArchivedOnly"], ["stopped"])
    assert "stopped" not in shown["ActiveOnly"], shown
    assert "stopped" in shown["All"], shown
    client.jobs.restore("stopped")
    assert rest("GET", f"{PLACE}/jobs/stopped").json()["properties"]["isArchived"] is False


@check("jobs.list(list_view_type)")
def _() -> None:
    client.jobs.archive("stopped")
    equal(names(client.jobs.list(list_view_type="ArchivedOnly")), ["stopped"])
    client.jobs.restore("stopped")


@check("jobs.list(parent_job_name)")
def _() -> None:
    equal(names(client.jobs.list(parent_job_name="one")), [])


@check("jobs.list over several pages")
def _() -> None:
    many = [f"many-{number:02d}" for number in range(52)]
    for name in many:
        copy(name)
    for name in reversed(many):  # most of them have not begun
        session.post(f"{URL}{PLACE}/jobs/{name}/cancel", timeout=60)
    first = rest("GET", f"{PLACE}/jobs", OLD).json()
    equal(len(first["value"]), 50)
    second = rest("GET", first["nextLink"]).json()
    equal(second["nextLink"], None)
    found = [entry["name"] for entry in first["value"] + second["value"]]
    equal(found[:52], many[::-1])
    equal(len(set(found)), len(found))
    equal(len(list(client.jobs.list())), len(found))


@check("jobs.begin_delete")
def _() -> None:
    client.jobs.begin_delete("stopped").result()
    refused(ResourceNotFoundError, 404, "stopped", client.jobs.get, "stopped")


JOB_KEYS = {
    "description", "tags", "properties", "displayName", "status", "experimentName", "services",
    "computeId", "isArchived", "identity", "componentId", "notificationSetting", "jobType",
    "fineTuningDetails", "outputs",
}  # fmt: skip
SERVICE_ADDS = {
    "PipelineType", "original_model_id", "azureml.ModelName", "azureml.PipelineType",
    "azureml.original_model_id", "azureml.trainingData.assetId", "azureml.validationData.assetId",
    "_fineTuningJobType", "_outputModelName", "StartTimeUtc",
}  # fmt: skip
DETAIL_KEYS = {
    "taskType", "modelProvider", "trainingData", "validationData", "model", "hyperParameters",
}  # fmt: skip
RUN_KEYS = {
    "runId", "status", "logFiles", "properties", "warnings", "error", "startTimeUtc", "endTimeUtc",
}  # fmt: skip
INPUT_KEYS = {"description", "uri", "mode", "jobInputType"}
OUTPUT_KEYS = {"description", "uri", "assetName", "mode", "jobOutputType"}


def recorded(body: dict[str, Any], more: set[str]) -> dict[str, Any]:
    equal(set(body), {"id", "name", "type", "properties", "systemData"})
    equal(body["type"], "Microsoft.MachineLearningServices/workspaces/jobs")
    equal(body["id"], f"{PLACE}/jobs/{body['name']}")
    equal(set(body["systemData"]), {"createdAt", "createdBy", "createdByType"})
    shown = body["properties"]
    equal(set(shown), JOB_KEYS | more)
    assert set(shown["properties"]) >= SERVICE_ADDS | {"my_property"}, shown["properties"]
    nulls = ("description", "computeId", "identity", "componentId", "notificationSetting")
    equal({key: shown[key] for key in nulls}, dict.fromkeys(nulls))
    details = shown["fineTuningDetails"]
    equal(set(details), DETAIL_KEYS)
    equal((details["taskType"], details["modelProvider"]), ("ChatCompletion", "Custom"))
    equal(details["model"]["mode"], "ReadOnlyMount")
    return shown


def fresh(name: str) -> Any:
    body = job(name)._to_rest_object()
    put = body.serialize() if hasattr(body, "serialize") else body.as_dict()
    put["properties"] = {
        key: value for key, value in put["properties"].items() if value is not None
    }
    return rest("PUT", f"{PLACE}/jobs/{name}", body=put, wanted=201)


@check("PUT of a job, as recorded: 201, Location, Running, ChatCompletion")
def _() -> None:
    reply = fresh("shape")
    assert reply.headers["Location"].endswith(f"{PLACE}/jobs/shape"), reply.headers
    shown = recorded(reply.json(), {"resources", "queueSettings"})
    equal((shown["status"], shown["resources"], shown["queueSettings"]), ("Running", None, None))
    output = shown["outputs"]["registered_model"]
    equal(set(output), OUTPUT_KEYS)
    equal((output["uri"], output["description"]), (None, None))
    equal(set(shown["fineTuningDetails"]["trainingData"]), INPUT_KEYS)
    equal(shown["properties"]["_fineTuningJobType"], "MaaS")


@check("GET of a job in the shape of 2024-10-01-preview, key by key")
def _() -> None:
    shown = recorded(rest("GET", f"{PLACE}/jobs/shape").json(), {"resources", "queueSettings"})
    equal(set(shown["fineTuningDetails"]["model"]), INPUT_KEYS)
    equal(set(shown["outputs"]["registered_model"]) - {"assetVersion"}, OUTPUT_KEYS)


@check("GET of a job in the shape of 2024-01-01-preview, key by key")
def _() -> None:
    shown = recorded(rest("GET", f"{PLACE}/jobs/shape", OLD).json(), {"secretsConfiguration"})
    equal(shown["secretsConfiguration"], None)
    extra = {"pathOnCompute", "assetVersion", "autoDeleteSetting"}
    output = shown["outputs"]["registered_model"]
    equal(set(output), OUTPUT_KEYS | extra)
    equal(output["autoDeleteSetting"], None)
    wait("shape")


@check("managed compute: MaaP, and its fields come back")
def _() -> None:
    managed = {
        "resources": {"instanceTypes": ["Standard_NC24ads_A100_v4"]},
        "queueSettings": {"jobTier": "Standard"},
    }
    copy("managed", **managed)
    new = rest("GET", f"{PLACE}/jobs/managed").json()["properties"]
    equal((new["resources"], new["queueSettings"]["jobTier"]),
          (managed["resources"], "Standard"))  # fmt: skip
    equal(new["properties"]["_fineTuningJobType"], "MaaP")
    old = rest("GET", f"{PLACE}/jobs/managed", OLD).json()["properties"]
    assert not {"resources", "queueSettings"} & set(old), old
    session.post(f"{URL}{PLACE}/jobs/managed/cancel", timeout=60)


@check("run history agrees with the job")
def _() -> None:
    history = f"/history/v1.0{PLACE}/runs/one"
    details = rest("GET", f"{history}/details").json()
    run = rest("GET", history).json()
    status = rest("GET", f"{PLACE}/jobs/one").json()["properties"]["status"]
    equal((details["status"], run["status"]), (status, status))
    assert set(details) >= RUN_KEYS, RUN_KEYS - set(details)
    equal((details["warnings"], details["error"]), (None, None))
    equal(rest("GET", f"{history}/children").json(), {"value": [], "nextLink": None})


# --- what a job leaves -----------------------------------------------------------------------------


@check("jobs.download: artifacts, and the named output")
def _() -> None:
    quiet(client.jobs.download, "one", download_path=FOLDER / "artifacts")
    assert (FOLDER / "artifacts/artifacts/user_logs/std_log.txt").exists()
    words = {"download_path": FOLDER / "named", "output_name": "registered_model"}
    quiet(client.jobs.download, "one", **words)
    place = FOLDER / "named/named-outputs/registered_model"
    assert (place / "data/model/adapter_model.safetensors").exists()


@check("jobs.download(all=True)")
def _() -> None:
    quiet(client.jobs.download, "one", download_path=FOLDER / "all", all=True)
    assert (FOLDER / "all/artifacts/user_logs/std_log.txt").exists()


@check("models.get, label, and its properties")
def _() -> None:
    found = client.models.get("tuned-one", version="1")
    equal((found.name, found.version, found.type), ("tuned-one", "1", "mlflow_model"))
    equal(found.properties["hasDeltaWeights"], "true")
    equal(found.job_name, "one")
    equal(client.models.get("tuned-one", label="latest").version, "1")
    refused(ResourceNotFoundError, 404, "tuned-one:9", client.models.get, "tuned-one", "9")


@check("models.list: containers and versions")
def _() -> None:
    assert "tuned-one" in names(client.models.list())
    equal([entry.version for entry in client.models.list(name="tuned-one")], ["1"])


@check("models.archive, restore: one version, and all")
def _() -> None:
    def versions(view: str) -> list[str]:
        return [entry.version for entry in client.models.list("tuned-one", list_view_type=view)]

    client.models.archive("tuned-one", version="1")
    equal([versions(v) for v in ("ActiveOnly", "ArchivedOnly", "All")], [[], ["1"], ["1"]])
    client.models.restore("tuned-one", version="1")
    equal(versions("ActiveOnly"), ["1"])
    client.models.archive("tuned-one")
    assert "tuned-one" not in names(client.models.list())
    client.models.restore("tuned-one")
    assert "tuned-one" in names(client.models.list())


@check("models.download")
def _() -> None:
    quiet(client.models.download, "tuned-one", version="1", download_path=FOLDER / "model")
    assert (FOLDER / "model/tuned-one/registered_model/MLmodel").exists()


# --- serverless endpoints --------------------------------------------------------------------------


def model_id(name: str) -> str:
    here = made["workspace"]
    return f"azureml://locations/{here.location}/workspaces/{here._workspace_id}/models/{name}/versions/1"


@check("serverless_endpoints.begin_create_or_update, get, list")
def _() -> None:
    wish = ServerlessEndpoint(name="my-endpoint", model_id=model_id("tuned-one"))
    endpoint = client.serverless_endpoints.begin_create_or_update(wish).result()
    equal(str(endpoint.provisioning_state).lower(), "succeeded")
    equal(str(endpoint.auth_mode).lower(), "key")
    found = client.serverless_endpoints.get("my-endpoint")
    equal((found.name, found.model_id), ("my-endpoint", wish.model_id))
    assert not found.scoring_uri.endswith("/"), found.scoring_uri
    equal(names(client.serverless_endpoints.list()), ["my-endpoint"])
    made["uri"] = found.scoring_uri


@check("print of an endpoint")
def _() -> None:
    assert "my-endpoint" in str(client.serverless_endpoints.get("my-endpoint"))


@check("serverless_endpoints.get_keys")
def _() -> None:
    keys = client.serverless_endpoints.get_keys("my-endpoint")
    assert keys.primary_key != keys.secondary_key
    made["key"] = keys.primary_key


@check("serverless_endpoints.begin_regenerate_keys")
def _() -> None:
    client.serverless_endpoints.begin_regenerate_keys("my-endpoint", key_type="secondary").result()


@check("regenerateKeys, over plain REST")
def _() -> None:
    one = f"{PLACE}/serverlessEndpoints/my-endpoint"
    before = rest("POST", f"{one}/listKeys", OLD).json()
    new = rest("POST", f"{one}/regenerateKeys", OLD, {"keyType": "Secondary"}).json()
    equal(new["primaryKey"], before["primaryKey"])
    assert new["secondaryKey"] != before["secondaryKey"]
    given = rest("POST", f"{one}/regenerateKeys", OLD, {"keyType": "Primary", "keyValue": "x" * 32})
    equal(given.json()["primaryKey"], "x" * 32)
    made["key"] = "x" * 32


QUESTION = {"messages": [{"role": "user", "content": "Capital of France?"}], "max_tokens": 20}


@check("inference by requests: a bare key, a bearer, api-key")
def _() -> None:
    ways = ({"Authorization": made["key"]}, {"Authorization": f"Bearer {made['key']}"},
            {"api-key": made["key"]})  # fmt: skip
    for path in ("/v1/chat/completions", "/chat/completions"):
        for headers in ways:
            reply = requests.post(made["uri"] + path, json=QUESTION, headers=headers, timeout=60)
            assert reply.json()["choices"][0]["message"]["content"], reply.text
    wrong = requests.post(f"{made['uri']}/v1/chat/completions", json=QUESTION, timeout=60)
    equal(wrong.status_code, 401)


@check("inference by openai")
def _() -> None:
    import ssl

    from openai import DefaultHttpxClient, OpenAI

    context = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
    line = DefaultHttpxClient(verify=context)
    talker = OpenAI(base_url=f"{made['uri']}/v1", api_key=made["key"], http_client=line)
    answer = talker.chat.completions.create(model="any", **QUESTION)
    assert answer.choices[0].message.content
    parts = talker.chat.completions.create(model="any", stream=True, **QUESTION)
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


@check("inference by azure-ai-inference")
def _() -> None:
    from azure.ai.inference import ChatCompletionsClient
    from azure.ai.inference.models import UserMessage

    talker = ChatCompletionsClient(endpoint=made["uri"], credential=AzureKeyCredential(made["key"]))
    assert talker.complete(messages=[UserMessage("Hello?")]).choices[0].message.content
    equal(talker.get_model_info().model_type, "chat-completion")


@check("endpoint states: Creating, Online, Deleting, gone")
def _() -> None:
    path = f"{PLACE}/serverlessEndpoints/stateful"
    body = {"properties": {"modelSettings": {"modelId": model_id("tuned-bare")}},
            "sku": {"name": "Consumption"}, "location": "eastus2"}  # fmt: skip
    reply = rest("PUT", path, OLD, body, 201)

    def state(shown: dict[str, Any]) -> tuple[str, str]:
        return shown["properties"]["endpointState"], shown["properties"]["provisioningState"]

    equal(state(reply.json()), ("Creating", "Creating"))
    states = follow(reply.headers["Azure-AsyncOperation"])
    equal((states[0], states[-1]), ("InProgress", "Succeeded"))
    shown = rest("GET", path, OLD).json()
    equal(state(shown), ("Online", "Succeeded"))
    equal(set(shown["properties"]), {
        "authMode", "modelSettings", "endpointState", "provisioningState", "inferenceEndpoint",
        "marketplaceSubscriptionId", "contentSafety",
    })  # fmt: skip
    equal(shown["properties"]["marketplaceSubscriptionId"], None)
    gone = rest("DELETE", path, OLD, wanted=202)
    equal(state(rest("GET", path, OLD).json()), ("Deleting", "Deleting"))
    while session.get(gone.headers["Location"], timeout=60).status_code == 202:
        time.sleep(0.02)
    rest("GET", path, OLD, wanted=404)


@check("a second deployment of one model")
def _() -> None:
    wish = ServerlessEndpoint(name="another", model_id=model_id("tuned-one"))

    def deploy() -> None:
        client.serverless_endpoints.begin_create_or_update(wish).result()

    refused(HttpResponseError, 400, "already deployed", deploy)


@check("serverless_endpoints.begin_delete")
def _() -> None:
    client.serverless_endpoints.begin_delete("my-endpoint").result()
    get = client.serverless_endpoints.get
    refused(ResourceNotFoundError, 404, "my-endpoint", get, "my-endpoint")


def attempt(function: Any) -> str:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever an SDK trips over is what we want to know
        words = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {words[0][:200]}"
    return "ok"


client = MLClient(DefaultAzureCredential(), SUBSCRIPTION, GROUP, WORKSPACE, **CLOUD)
registry = MLClient(DefaultAzureCredential(), registry_name="azureml", **CLOUD)
session.headers["Authorization"] = f"Bearer {token()}"
sys.stdout.write(json.dumps({name: attempt(function) for name, function in CHECKS.items()}) + "\n")
