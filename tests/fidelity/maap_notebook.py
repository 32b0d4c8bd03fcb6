"""The service's notebook for managed compute as one program: unmodified azure-ai-ml, told where to go
by the environment.

    python maap_notebook.py TRAIN.jsonl FOLDER     prints one JSON object of what it saw

A compute, the registry's pipeline component, a pipeline job, its model, an online endpoint, an answer.
It imports nothing of ours. CLOUD_KEYWORDS points MLClient at the mock by keywords instead; FINETUNE (a
JSON object) overrides what the job is tuned with; WAYS (words) chooses the ways in which jobs outside
of pipelines get their machines.
"""

# mypy: ignore-errors
from __future__ import annotations

import ast
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

import requests  # noqa: E402
from azure.ai.ml import Input, MLClient  # noqa: E402
from azure.ai.ml.constants import AssetTypes  # noqa: E402
from azure.ai.ml.dsl import pipeline  # noqa: E402
from azure.ai.ml.entities import (  # noqa: E402
    AmlCompute,
    Data,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
    ProbeSettings,
)
from azure.ai.ml.finetuning import create_finetuning_job  # noqa: E402
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError  # noqa: E402
from azure.identity import DefaultAzureCredential  # noqa: E402

TRAIN, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
CLUSTER, SIZE = "gpu-cluster-big", "Standard_NC24ads_A100_v4"
seen: dict[str, Any] = {}


def clients() -> tuple[MLClient, MLClient]:
    place = [
        os.environ[key]
        for key in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME")
    ]
    credential = DefaultAzureCredential()
    cloud = json.loads(os.environ.get("CLOUD_KEYWORDS", "{}"))
    registry = MLClient(credential, registry_name="azureml", **cloud)
    return MLClient(credential, *place, **cloud), registry


def quiet(call: Any, *arguments: Any, **keywords: Any) -> str:
    words = io.StringIO()
    with contextlib.redirect_stdout(words), contextlib.redirect_stderr(io.StringIO()):
        call(*arguments, **keywords)
    return words.getvalue()


def refused(call: Any, *arguments: Any, **keywords: Any) -> list[Any]:
    try:
        call(*arguments, **keywords)
    except HttpResponseError as error:
        return [type(error).__name__, error.status_code, str(error).splitlines()[0]]
    return ["nothing"]


workspace, registry = clients()
model_name = "Phi-3-mini-4k-instruct"
foundation = registry.models.get(model_name, label="latest")
allowed = ast.literal_eval(foundation.tags.get("finetune_compute_allow_list", "[]"))

seen["computes before"] = [entry.name for entry in workspace.compute.list()]
try:
    compute = workspace.compute.get(CLUSTER)
except ResourceNotFoundError as error:
    seen["absent compute"] = error.status_code
    compute = AmlCompute(name=CLUSTER, size=SIZE, tier="Dedicated", max_instances=2)
    workspace.compute.begin_create_or_update(compute).wait()
compute = workspace.compute.get(CLUSTER)
seen["compute"] = [compute.name, compute.provisioning_state.lower(), compute.size, compute.tier,
                   compute.min_instances, compute.max_instances]  # fmt: skip
seen["allowed"] = not allowed or compute.size.lower() in [size.lower() for size in allowed]
sizes = {size.name.lower(): size.gpus for size in workspace.compute.list_sizes()}
gpus_per_node = sizes[compute.size.lower()]
seen["sizes"] = [gpus_per_node, sizes["standard_nd40rs_v2"], sizes["standard_ds3_v2"]]
seen["computes"] = [entry.name for entry in workspace.compute.list()]
seen["usage"] = any(usage.limit for usage in workspace.compute.list_usage())

component = registry.components.get(name="chat_completion_pipeline", label="latest")
seen["component"] = [component.name, component.type, component.version in
                     [entry.version for entry in registry.components.list(name=component.name)],
                     [entry.name for entry in registry.components.list()]]  # fmt: skip

finetune_parameters = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "learning_rate": 5e-6,
    "lr_scheduler_type": "cosine",
}
optimization_parameters = {"apply_lora": "true", "apply_deepspeed": "true", "deepspeed_stage": 2}
# The registry's own defaults have bounds beside them, which are no inputs of the component.
specific = ast.literal_eval(foundation.tags.get("model_specific_defaults", "{}"))
finetune_parameters |= {key: text for key, text in specific.items() if key in component.inputs}
finetune_parameters |= json.loads(os.environ.get("FINETUNE", "{}"))
finetune_parameters = optimization_parameters | finetune_parameters


@pipeline(name="phi-3-ultrachat")
def create_pipeline() -> dict[str, Any]:
    tuned = component(
        mlflow_model_path=foundation.id,
        compute_model_import=CLUSTER,
        compute_preprocess=CLUSTER,
        compute_finetune=CLUSTER,
        compute_model_evaluation=CLUSTER,
        train_file_path=Input(type="uri_file", path=str(TRAIN)),
        validation_file_path=Input(type="uri_file", path=str(TRAIN)),
        test_file_path=Input(type="uri_file", path=str(TRAIN)),
        number_of_gpu_to_use_finetuning=gpus_per_node,
        **finetune_parameters,
    )
    return {"trained_model": tuned.outputs.mlflow_model_folder}


pipeline_object = create_pipeline()
pipeline_object.settings.force_rerun = True
pipeline_object.settings.continue_on_step_failure = False
with contextlib.redirect_stderr(io.StringIO()):
    job = workspace.jobs.create_or_update(pipeline_object, experiment_name="chat_completion_phi")
seen["put"] = [str(job.status), job.type, job.display_name, job.experiment_name, list(job.outputs)]
seen["stream"] = quiet(workspace.jobs.stream, job.name)
done = workspace.jobs.get(job.name)
seen["done"] = [str(done.status), done.type, list(done.jobs), list(done.outputs),
                done.settings.force_rerun, done.properties["_fineTuningJobType"],
                done.properties["mockTrainedOn"]]  # fmt: skip
seen["job"] = job.name
seen["listed"] = [[entry.name == job.name, entry.type] for entry in workspace.jobs.list()]
node = next(iter(workspace.jobs.list(parent_job_name=job.name)))
seen["node"] = [node.display_name, str(workspace.jobs.get(node.name).status)]
steps = list(workspace.jobs.list(parent_job_name=node.name))
seen["steps"] = [[step.display_name, str(step.status)] for step in steps]
quiet(workspace.jobs.download, job.name, download_path=FOLDER, output_name="trained_model")
quiet(workspace.jobs.download, job.name, download_path=FOLDER)

data = workspace.data.create_or_update(
    Data(path=str(TRAIN), type="uri_file", name="train", version="1")
)
ways = {"by-compute": {"compute": CLUSTER}, "by-types": {"instance_types": [SIZE, "Standard_E4s_v3"]},
        "by-tier": {"instance_types": [SIZE], "job_tier": "Spot"}}  # fmt: skip
seen["standalone"] = {}
for way in os.environ.get("WAYS", " ".join(ways)).split():
    one = create_finetuning_job(
        name=way,
        task="chat_completion",
        model=foundation.id,
        training_data=data.id,
        validation_data=data.id,
        output_model_name_prefix=f"tuned-{way}",
        hyperparameters={"max_steps": "4", "precision": "32"},
        **ways[way],
    )
    made = workspace.jobs.create_or_update(one)
    quiet(workspace.jobs.stream, way)
    shown = workspace.jobs.get(way)
    seen["standalone"][way] = [
        made.properties["_fineTuningJobType"],
        str(shown.status),
        shown.compute,
        shown.resources.instance_types if shown.resources else None,
        str(shown.queue_settings.job_tier) if shown.queue_settings else None,
        workspace.models.get(f"tuned-{way}", version="1").name,
    ]

wanted = Model(
    path=f"azureml://jobs/{job.name}/outputs/trained_model",
    type=AssetTypes.MLFLOW_MODEL,
    name=f"{model_name}-ultrachat-200k",
    version="1732000000",
    description="tuned on ultrachat",
)
model = workspace.models.create_or_update(wanted)
again = workspace.models.create_or_update(wanted)
seen["model id"] = model.id
seen["model"] = [model.name, model.version, model.type, model.job_name == job.name,
                 model.id == again.id, model.description]  # fmt: skip
seen["next version"] = workspace.models.create_or_update(
    Model(path=wanted.path, type=AssetTypes.MLFLOW_MODEL, name=model.name)
).version
workspace.jobs.archive(job.name)
# The first versions of azure-ai-ml list None for a fine-tuning job.
seen["archived"] = job.name not in [entry.name for entry in workspace.jobs.list() if entry]
workspace.jobs.restore(job.name)
seen["restored"] = job.name in [entry.name for entry in workspace.jobs.list() if entry]
seen["models"] = [entry.name for entry in workspace.models.list()]
workspace.models.archive(model.name, version=model.version)
seen["versions"] = [entry.version for entry in workspace.models.list(name=model.name)]
workspace.models.restore(model.name, version=model.version)
workspace.models.archive(model.name)
seen["models after archive"] = [entry.name for entry in workspace.models.list()]
workspace.models.restore(model.name)
quiet(workspace.models.download, model.name, version=model.version, download_path=FOLDER / "model")
seen["files"] = sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*") if p.is_file())

endpoint = ManagedOnlineEndpoint(
    name="ultrachat-completion", description="tuned on ultrachat", auth_mode="key"
)
seen["endpoint"] = str(workspace.begin_create_or_update(endpoint).result().provisioning_state)
deployment = ManagedOnlineDeployment(
    name="demo",
    endpoint_name=endpoint.name,
    model=model.id,
    instance_type="Standard_NC24ads_A100_v4",
    instance_count=1,
    liveness_probe=ProbeSettings(initial_delay=600),
    request_settings=OnlineRequestSettings(request_timeout_ms=90000),
)
quiet(lambda: workspace.online_deployments.begin_create_or_update(deployment).wait())
endpoint.traffic = {"demo": 100}
made = workspace.begin_create_or_update(endpoint).result()
seen["traffic"] = made.traffic
shown = workspace.online_deployments.get("demo", endpoint.name)
seen["deployment"] = [shown.name, shown.provisioning_state, shown.instance_type, shown.instance_count,
                      shown.model == model.id, shown.liveness_probe.initial_delay,
                      shown.request_settings.request_timeout_ms]  # fmt: skip
seen["deployments"] = [entry.name for entry in workspace.online_deployments.list(endpoint.name)]
seen["endpoints"] = [entry.name for entry in workspace.online_endpoints.list()]
seen["logs"] = workspace.online_deployments.get_logs("demo", endpoint.name, lines=50)

turns = [{"role": "user", "content": "Where is the tap?"}]
parameters = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "max_new_tokens": 20}
bodies = {
    "one": {"input_data": {"input_string": turns, "parameters": parameters}},
    "several": {
        "input_data": {"input_string": [turns, turns], "parameters": parameters},
        "params": {},
    },
    "text": {"input_data": "Where is the tap?"},
    "texts": {
        "input_data": ["Where is the tap?"],
        "params": {"max_new_tokens": 20, "do_sample": False},
    },
}
request = FOLDER / "sample_score.json"
seen["answers"] = {}
for way, body in bodies.items():
    request.write_text(json.dumps(body))
    reply = workspace.online_endpoints.invoke(
        endpoint.name, deployment_name="demo", request_file=str(request)
    )
    seen["answers"][way] = json.loads(reply)["output"]
seen["by traffic"] = json.loads(
    workspace.online_endpoints.invoke(endpoint.name, request_file=str(request))
)
request.write_text(json.dumps({"input_data": []}))
seen["bad question"] = refused(
    workspace.online_endpoints.invoke, endpoint.name, request_file=str(request)
)
keys = workspace.online_endpoints.get_keys(endpoint.name)
workspace.online_endpoints.begin_regenerate_keys(endpoint.name, key_type="primary").wait()
fresh = workspace.online_endpoints.get_keys(endpoint.name)
seen["keys"] = [keys.primary_key != fresh.primary_key, keys.secondary_key == fresh.secondary_key]
seen["old key"] = requests.post(
    made.scoring_uri,
    json=bodies["text"],
    headers={"Authorization": f"Bearer {keys.primary_key}"},
    timeout=60,
).status_code
seen["key"] = fresh.primary_key

by_token = ManagedOnlineEndpoint(name="by-token", auth_mode="aml_token")
workspace.begin_create_or_update(by_token).wait()
base = ManagedOnlineDeployment(
    name="base",
    endpoint_name="by-token",
    model=foundation.id,
    instance_type="Standard_NC24ads_A100_v4",
    instance_count=1,
)
quiet(lambda: workspace.online_deployments.begin_create_or_update(base).wait())
request.write_text(json.dumps(bodies["one"]))
reply = workspace.online_endpoints.invoke(
    "by-token", deployment_name="base", request_file=str(request)
)
seen["by token"] = [bool(workspace.online_endpoints.get_keys("by-token").access_token),
                    json.loads(reply)["output"]]  # fmt: skip
workspace.online_deployments.begin_delete("base", "by-token").wait()
seen["deployments after"] = [entry.name for entry in workspace.online_deployments.list("by-token")]
workspace.online_endpoints.begin_delete("by-token").wait()

seen["deployment with traffic"] = refused(
    workspace.online_deployments.begin_delete, "demo", endpoint.name
)
quiet(lambda: workspace.online_endpoints.begin_delete(name=endpoint.name).wait())
seen["deleted"] = refused(workspace.online_endpoints.get, endpoint.name)
workspace.compute.begin_delete(CLUSTER).wait()
seen["deleted compute"] = refused(workspace.compute.get, CLUSTER)
sys.stdout.write("\n" + json.dumps(seen) + "\n")  # azure-ai-ml prints dots before
