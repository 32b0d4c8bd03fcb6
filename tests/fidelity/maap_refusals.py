"""What a program for managed compute gets refused, with azure-ai-ml's own exceptions.

    python maap_refusals.py TRAIN.jsonl FOLDER MODEL_ID JOB     prints one JSON object: case -> exception

MODEL_ID is a tuned model of the workspace, JOB the pipeline job that made it. It imports nothing of ours.
"""

# mypy: ignore-errors
from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

import yaml  # noqa: E402
from azure.ai.ml import MLClient, load_job  # noqa: E402
from azure.ai.ml.entities import (  # noqa: E402
    AmlCompute,
    ComputeInstance,
    Data,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
)
from azure.core.exceptions import HttpResponseError  # noqa: E402
from azure.identity import DefaultAzureCredential  # noqa: E402

TRAIN, FOLDER, MODEL_ID, JOB = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
BASE = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
COMPONENT = "azureml://registries/azureml/components/chat_completion_pipeline/versions/0.0.81"
ONE, TWO = "Standard_NC24ads_A100_v4", "Standard_NC48ads_A100_v4"
place = [
    os.environ[key]
    for key in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME")
]
workspace = MLClient(DefaultAzureCredential(), *place)
registry = MLClient(DefaultAzureCredential(), registry_name="azureml")
seen: dict[str, Any] = {}


def refused(case: str, call: Any) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            call()
    except HttpResponseError as error:
        body = json.loads(error.response.text())["error"]
        inner = {item["type"]: item["info"]["value"] for item in body.get("additionalInfo", [])}
        seen[case] = [
            type(error).__name__,
            error.status_code,
            body["code"],
            inner["InnerError"]["code"],
            body["message"],
        ]
    else:
        seen[case] = "nothing"


def cluster(name: str, **settings: Any) -> Any:
    wanted = AmlCompute(name=name, **{"size": ONE, **settings})
    return lambda: workspace.compute.begin_create_or_update(wanted).result()


def load(raw: dict[str, Any]) -> Any:
    file = FOLDER / "job.yaml"
    file.write_text(yaml.safe_dump(raw))
    return load_job(file)


def tuning(**changes: Any) -> Any:
    raw = {
        "type": "finetuning",
        "task": "chat_completion",
        "model_provider": "custom",
        "model": {"path": BASE, "type": "mlflow_model"},
        "training_data": {"path": data.id, "type": "uri_file"},
        "outputs": {"registered_model": {"name": "refused", "type": "mlflow_model"}},
        **changes,
    }
    return lambda: workspace.jobs.create_or_update(load(raw))


def tuned_by_pipeline(
    nodes: int = 1, component: str = COMPONENT, outputs: Any = None, **changes: Any
) -> Any:
    inputs = {
        "mlflow_model_path": {"type": "mlflow_model", "path": BASE},
        "train_file_path": {"type": "uri_file", "path": data.id},
        "compute_finetune": "big-enough",
        **changes,
    }
    kept = {key: value for key, value in inputs.items() if value is not None}
    node = {"type": "pipeline", "component": component, "inputs": kept}
    raw = {
        "type": "pipeline",
        "jobs": {f"tune_{n}": json.loads(json.dumps(node)) for n in range(nodes)},
    }
    if outputs:
        raw["outputs"] = outputs
    return lambda: workspace.jobs.create_or_update(load(raw))


def model(path: str, **settings: Any) -> Any:
    wanted = Model(
        **{"name": "refused", "version": "1", "type": "mlflow_model"} | settings, path=path
    )
    return lambda: workspace.models.create_or_update(wanted)


def deployment(endpoint: str = "refusing", **settings: Any) -> Any:
    wanted = {"model": MODEL_ID, "instance_type": ONE, "instance_count": 1, "name": "other"}
    made = ManagedOnlineDeployment(endpoint_name=endpoint, **{**wanted, **settings})
    return lambda: workspace.online_deployments.begin_create_or_update(made).result()


def endpoint(**settings: Any) -> Any:
    made = ManagedOnlineEndpoint(**{"name": "refusing", "auth_mode": "key", **settings})
    return lambda: workspace.online_endpoints.begin_create_or_update(made).result()


def invoke(name: str | None = None) -> Any:
    request = FOLDER / "request.json"
    request.write_text(json.dumps({"input_data": "Hello?"}))
    return lambda: workspace.online_endpoints.invoke(
        "refusing", deployment_name=name, request_file=str(request)
    )


def quiet(call: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        call()


with contextlib.redirect_stderr(io.StringIO()):
    data = workspace.data.create_or_update(
        Data(path=str(TRAIN), type="uri_file", name="refusals", version="1")
    )

refused("compute: absent", lambda: workspace.compute.get("nowhere"))
refused("compute: unknown size", cluster("bad", size="Standard_Q1"))
refused("compute: name", cluster("a--b"))
refused("compute: scale", cluster("bad", min_instances=3, max_instances=2))
refused(
    "compute: kind",
    lambda: workspace.compute.begin_create_or_update(ComputeInstance(name="vm", size=ONE)),
)
refused("compute: delete absent", lambda: workspace.compute.begin_delete("nowhere").result())
cluster("big-enough")()
cluster("too-small", size="Standard_NC6s_v3")()
refused("compute: other size", cluster("big-enough", size=TWO))

refused("job: absent compute", tuning(compute="nowhere"))
refused("job: absent compute by id", tuning(compute=f"{data.id.split('/data/')[0]}/computes/no"))
refused("job: small compute", tuning(compute="too-small"))
refused("job: instance types", tuning(resources={"instance_types": ["Standard_E4s_v3"]}))
refused("job: unknown type", tuning(resources={"instance_types": ["Standard_Q1"]}))

refused("component: absent", lambda: registry.components.get("nothing", version="1"))
refused(
    "component: version", lambda: registry.components.get("chat_completion_pipeline", version="9.9")
)
refused("pipeline: component", tuned_by_pipeline(component=COMPONENT.replace("chat", "chess")))
refused("pipeline: two nodes", tuned_by_pipeline(nodes=2))
refused("pipeline: unknown input", tuned_by_pipeline(lora_rank=8))
refused("pipeline: no model", tuned_by_pipeline(mlflow_model_path=None))
refused("pipeline: no data", tuned_by_pipeline(train_file_path=None))
refused("pipeline: unserved input", tuned_by_pipeline(huggingface_id="microsoft/phi-2"))
refused("pipeline: number", tuned_by_pipeline(num_train_epochs="three"))
refused("pipeline: too small a number", tuned_by_pipeline(num_train_epochs=0))
refused("pipeline: choice", tuned_by_pipeline(lr_scheduler_type="square"))
refused("pipeline: bounds", tuned_by_pipeline(learning_rate=0.5))
refused("pipeline: absent compute", tuned_by_pipeline(compute_preprocess="nowhere"))
refused("pipeline: small compute", tuned_by_pipeline(compute_finetune="too-small"))
refused("pipeline: gpus", tuned_by_pipeline(number_of_gpu_to_use_finetuning=8))
refused("pipeline: nodes", tuned_by_pipeline(num_nodes_finetune=9))
refused(
    "pipeline: unbound output", tuned_by_pipeline(outputs={"trained": {"type": "mlflow_model"}})
)
gone = {"type": "uri_file", "path": f"{data.id.rpartition('/')[0]}/99"}
refused("pipeline: absent data", tuned_by_pipeline(train_file_path=gone))
refused("pipeline: absent test data", tuned_by_pipeline(test_file_path=gone))

store = "azureml://datastores/workspaceblobstore/paths"
refused("model: absent job", model("azureml://jobs/nobody/outputs/trained_model"))
refused("model: absent output", model(f"azureml://jobs/{JOB}/outputs/nothing"))
refused("model: no files", model(f"{store}/nothing/here"))
refused("model: no MLmodel", model(f"azureml://jobs/{JOB}/outputs/trained_model/paths/data/model"))
name, version = MODEL_ID.split("/")[-3], MODEL_ID.split("/")[-1]
refused("model: other path", model(f"{store}/azureml/{JOB}/", name=name, version=version))

refused("online: absent", lambda: workspace.online_endpoints.get("nowhere"))
endpoint()()
refused("online: no traffic", invoke())
refused("online: traffic to nobody", endpoint(traffic={"nobody": 100}))
refused("online: mode", endpoint(auth_mode="aml_token"))
refused("deployment: absent", lambda: workspace.online_deployments.get("other", "refusing"))
refused("deployment: absent endpoint", deployment(endpoint="nowhere"))
refused("deployment: absent model", deployment(model=MODEL_ID.rpartition("/")[0] + "/99"))
refused("deployment: small instance", deployment(instance_type="Standard_DS3_v2"))
refused("deployment: instances", deployment(instance_count=1000))
refused("deployment: unknown base", deployment(model=BASE.replace("mini", "huge")))
quiet(
    model(
        f"azureml://jobs/{JOB}/outputs/trained_model/paths/MLmodel",
        name="plain",
        type="custom_model",
    )
)
plain = workspace.models.get("plain", version="1").id
refused("deployment: other model", deployment(model=plain))
quiet(deployment(name="demo", instance_type="Standard_XY_of_tomorrow"))
refused("online: half the traffic", endpoint(traffic={"demo": 50}))
endpoint(traffic={"demo": 100})()
refused(
    "deployment: has traffic",
    lambda: workspace.online_deployments.begin_delete("demo", "refusing").result(),
)
quiet(lambda: workspace.online_endpoints.begin_delete("refusing").result())
sys.stdout.write("\n" + json.dumps(seen) + "\n")
