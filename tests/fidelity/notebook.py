"""The service's own notebook as one program: unmodified azure-ai-ml, told where to go by the environment.

    python notebook.py TRAIN.jsonl FOLDER     prints one JSON object of what it saw

It imports nothing of ours. With `RECIPE=B` it points MLClient at the mock by keywords instead.
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
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError  # noqa: E402
from azure.identity import DefaultAzureCredential  # noqa: E402

TRAIN, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
seen: dict[str, object] = {}


def clients() -> tuple[MLClient, MLClient]:
    place = [
        os.environ[key]
        for key in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME")
    ]
    cloud = json.loads(os.environ.get("CLOUD_KEYWORDS", "{}"))
    credential = DefaultAzureCredential()
    return MLClient(credential, *place, **cloud), MLClient(
        credential, registry_name="azureml", **cloud
    )


def refused(call: Any, *arguments: Any, **keywords: Any) -> dict[str, object]:
    try:
        call(*arguments, **keywords)
    except HttpResponseError as error:
        return {"type": type(error).__name__, "status": error.status_code, "text": str(error)}
    return {"type": None}


def quiet(call: Any, *arguments: Any, **keywords: Any) -> str:
    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        call(*arguments, **keywords)
    return words.getvalue()


def names(jobs: Any) -> list[str | None]:
    """The jobs' names; azure-ai-ml 1.28 and 1.32 list a fine-tuning job as None."""
    return [job and job.name for job in jobs]


workspace, registry = clients()
ws = workspace.workspaces.get(os.environ["AZUREML_WORKSPACE_NAME"])
seen["workspace"] = [ws.name, ws.location, bool(ws.discovery_url)]

latest = registry.models.get("Phi-3-mini-4k-instruct", label="latest")
seen["registry"] = [latest.name, latest.version, latest.tags["maas-finetuning-deploy-regions"],
                    bool(latest.properties["finetune-recommended-sku"])]  # fmt: skip
seen["registry version"] = registry.models.get("Phi-3-mini-4k-instruct", version="14").version
seen["unknown model"] = refused(registry.models.get, "Phi-3-mini-4k-instruct", version="99")
seen["unknown registry"] = refused(
    MLClient,
    DefaultAzureCredential(),
    registry_name="nowhere",
    **json.loads(os.environ.get("CLOUD_KEYWORDS", "{}")),
)

seen["absent data"] = refused(workspace.data.get, "train", version="1")
data = workspace.data.create_or_update(
    Data(path=str(TRAIN), type="uri_file", name="train", version="1")
)
again = workspace.data.create_or_update(
    Data(path=str(TRAIN), type="uri_file", name="train", version="1")
)
seen["data"] = [
    data.name,
    data.version,
    data.id == again.id,
    workspace.data.get("train", label="latest").version,
]
automatic = workspace.data.create_or_update(Data(path=str(TRAIN), type="uri_file", name="train"))
seen["next version"] = automatic.version

seen["marketplace"] = refused(
    lambda: workspace.marketplace_subscriptions.begin_create_or_update(
        MarketplaceSubscription(
            model_id="azureml://registries/azureml/models/Phi-3-mini-4k-instruct", name="phi"
        )
    ).result()
)
third = workspace.marketplace_subscriptions.begin_create_or_update(
    MarketplaceSubscription(
        model_id="azureml://registries/azureml-meta/models/Llama-2-7b", name="llama"
    )
).result()
seen["third party"] = third.status

made = create_finetuning_job(
    task=FineTuningTaskType.CHAT_COMPLETION,
    training_data=data.id,
    validation_data=data.id,
    hyperparameters={
        "per_device_train_batch_size": "1",
        "learning_rate": "0.00002",
        "num_train_epochs": "1",
    },
    model=MODEL,
    display_name="by function",
    name="by-function",
    experiment_name="phi",
    tags={"foo_tag": "bar"},
    properties={"my_property": "my_value"},
    output_model_name_prefix="tuned",
)
job = workspace.jobs.create_or_update(made)
seen["put"] = {
    "status": str(job.status), "name": job.name, "tags": job.tags, "task": str(job.task),
    "type": job.properties["_fineTuningJobType"], "own": job.properties["my_property"],
    "output": job.outputs["registered_model"]["name"], "hyperparameters": job.hyperparameters,
}  # fmt: skip
seen["stream"] = quiet(workspace.jobs.stream, "by-function")
job = workspace.jobs.get("by-function")
seen["done"] = [str(job.status), bool(job.studio_url)]

(FOLDER / "job.yaml").write_text(
    "type: finetuning\nname: by-file\ntask: chat_completion\nmodel_provider: custom\n"
    f"model: {{path: {MODEL!r}, type: mlflow_model}}\ntraining_data: {{path: {TRAIN}, type: uri_file}}\n"
    "hyperparameters: {learning_rate: '0.00002'}\n"
    "outputs: {registered_model: {name: from-file, type: mlflow_model}}\n"
)
loaded = workspace.jobs.create_or_update(load_job(FOLDER / "job.yaml"))
same = workspace.jobs.create_or_update(load_job(FOLDER / "job.yaml"))
other = load_job(FOLDER / "job.yaml")
other.hyperparameters["learning_rate"] = "0.00003"
seen["same name, same body"] = same.name
seen["same name, other body"] = refused(workspace.jobs.create_or_update, other)
while workspace.jobs.get("by-file").status not in ("Completed", "Failed", "Canceled"):
    time.sleep(0.05)

long = load_job(FOLDER / "job.yaml")
long.name = "to-cancel"
workspace.jobs.create_or_update(long)
workspace.jobs.begin_cancel("to-cancel").result()
seen["cancelled"] = str(workspace.jobs.get("to-cancel").status)
seen["list"] = names(workspace.jobs.list())
workspace.jobs.archive("to-cancel")
seen["list after archive"] = names(workspace.jobs.list())
seen["list archived"] = names(workspace.jobs.list(list_view_type="ArchivedOnly"))
workspace.jobs.restore("to-cancel")

quiet(workspace.jobs.download, "by-function", download_path=FOLDER / "artifacts")
quiet(
    workspace.jobs.download,
    "by-function",
    download_path=FOLDER / "named",
    output_name="registered_model",
)
model = workspace.models.get("tuned", version="1")
seen["model"] = [model.name, model.version, workspace.models.get("tuned", label="latest").version,
                 model.properties["hasDeltaWeights"]]  # fmt: skip
quiet(workspace.models.download, "tuned", version="1", download_path=FOLDER / "model")
seen["files"] = sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*") if p.is_file())

model_id = (
    f"azureml://locations/{ws.location}/workspaces/{ws._workspace_id}/models/tuned/versions/1"
)
endpoint = workspace.serverless_endpoints.begin_create_or_update(
    ServerlessEndpoint(name="my-endpoint", model_id=model_id)
).result()
seen["endpoint"] = [endpoint.name, str(endpoint.provisioning_state), str(endpoint.auth_mode)]
seen["second deployment"] = refused(
    lambda: workspace.serverless_endpoints.begin_create_or_update(
        ServerlessEndpoint(name="another", model_id=model_id)
    ).result()
)
seen["endpoints"] = [entry.name for entry in workspace.serverless_endpoints.list()]
keys = workspace.serverless_endpoints.get_keys("my-endpoint")
url = workspace.serverless_endpoints.get("my-endpoint").scoring_uri + "/v1/chat/completions"
question = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 50,
}
answers = {
    "bare key": {"Authorization": keys.primary_key},
    "bearer": {"Authorization": f"Bearer {keys.secondary_key}"},
    "api-key": {"api-key": keys.primary_key},
    "wrong": {"api-key": "nonsense"},
    "none": {},
}
seen["chat"] = {}
for way, headers in answers.items():
    reply = requests.post(url, json=question, headers=headers, timeout=60)
    body = reply.json()
    seen["chat"][way] = [
        reply.status_code,
        body["choices"][0]["message"]["content"] if reply.ok else body["error"]["message"],
    ]
seen["key"], seen["uri"] = keys.primary_key, endpoint.scoring_uri
workspace.serverless_endpoints.begin_delete("my-endpoint").result()
try:
    workspace.serverless_endpoints.get("my-endpoint")
except ResourceNotFoundError as error:
    seen["deleted"] = error.status_code
seen["errors are the SDK's own"] = issubclass(ResourceExistsError, HttpResponseError)
_ = (Input, Output)
print(json.dumps(seen))
