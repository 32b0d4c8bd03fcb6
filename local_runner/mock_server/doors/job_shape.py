"""A job in the service's words: its two shapes, its run history, and what makes two of them the same."""

from __future__ import annotations

import json
from typing import Any

from local_runner.mock_server.doors import pipeline_shape, pipelines
from local_runner.mock_server.lifecycle import LIVE, in_azure_ml
from local_runner.mock_server.runs import artifacts
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import ARTIFACT_STORE, Site, Twin, system_data

OLD = "2024-01-01-preview"
"""The api-version whose GET has another shape: some keys more, some fewer."""
EXPERIMENT = "Default"


def history(job: Body) -> dict[str, Any]:
    """The job as run history tells it."""
    if "pipeline" in job:
        return pipeline_shape.history(job)
    return {
        "runId": job["name"],
        "status": in_azure_ml(job),
        "displayName": job["wire"].get("displayName"),
        "startTimeUtc": job["created"],
        "endTimeUtc": job["ended"],
        "properties": _properties(job),
        "tags": job["wire"].get("tags") or {},
    }


def shown(twin: Twin, job: Body, version: str = "", *, fresh: bool = False) -> dict[str, Any]:
    """The job in the shape of an api-version (recorded 2024-11-25); `fresh` right after a PUT."""
    wire, made, old = job["wire"], system_data(job["created"]), version == OLD
    common = {
        "description": wire.get("description"),
        "tags": wire.get("tags") or {},
        "displayName": wire.get("displayName") or job["name"],
        "experimentName": wire.get("experimentName") or EXPERIMENT,
        "services": _services(twin.site, job),
        "computeId": None if old else wire.get("computeId"),
        "isArchived": job["archived"],
        "identity": wire.get("identity"),
        "componentId": None,
        "notificationSetting": wire.get("notificationSetting"),
    }
    properties = (
        pipeline_shape.shown(job, common)
        if "pipeline" in job
        else common | _tuning(twin, job, old=old, fresh=fresh)
    )
    return {
        "id": twin.arm_id("jobs", job["name"]),
        "name": job["name"],
        "type": "Microsoft.MachineLearningServices/workspaces/jobs",
        "systemData": {key: made[key] for key in ("createdAt", "createdBy", "createdByType")},
        "properties": properties,
    }


def _tuning(twin: Twin, job: Body, *, old: bool, fresh: bool) -> dict[str, Any]:
    """What a fine-tuning job has of its own."""
    wire, details = job["wire"], job["wire"]["fineTuningDetails"]
    task = str(details["taskType"])
    nulls = {"pathOnCompute": None} if old else {}
    extra = {"secretsConfiguration": None} if old else {
        "resources": wire.get("resources"), "queueSettings": wire.get("queueSettings")
    }  # fmt: skip
    return {
        "properties": _properties(job),
        # Recorded: the reply to a PUT says Running, whatever is true a moment later.
        "status": "Running" if fresh and job["state"] in LIVE else in_azure_ml(job),
        "jobType": "FineTuning",
        "fineTuningDetails": {
            "taskType": task[:1].upper() + task[1:],
            "modelProvider": "Custom",
            "hyperParameters": details.get("hyperParameters") or {},
            **{
                key: {"description": None, "mode": "ReadOnlyMount", **nulls, **details[key]}
                if details.get(key)
                else None
                for key in ("model", "trainingData", "validationData")
            },
        },
        "outputs": _outputs(twin.site, job, old=old),
        **extra,
    }


def _services(site: Site, job: Body) -> dict[str, Any]:
    # The service answers null right after a PUT, and azure-ai-ml's stream dies of it: we do not.
    studio = f"https://ml.azure.com/runs/{job['name']}?wsid={site.workspace_path}"
    tracking = f"azureml://{site.api.removeprefix('https://')}/mlflow/v1.0{site.workspace_path}"
    return {
        "Tracking": {"jobServiceType": "Tracking", "endpoint": tracking, "status": None},
        "Studio": {"jobServiceType": "Studio", "endpoint": studio, "status": None},
    }


def _outputs(site: Site, job: Body, *, old: bool) -> dict[str, Any]:
    done = job["state"] == "Completed"
    nulls = {"pathOnCompute": None, "autoDeleteSetting": None} if old else {}
    outputs = {}
    for key, given in (job["wire"].get("outputs") or {}).items():
        version = job["version"] if done and key == "registered_model" else None
        uri = (
            f"azureml://locations/{site.region}/workspaces/{site.workspace_id}/models"
            f"/{given.get('assetName')}/versions/{version}"
            if version
            else None
        )
        output = {"description": None, "uri": uri, "mode": "ReadWriteMount", **nulls, **given}
        if version or old:
            output["assetVersion"] = version
        outputs[key] = output
    if done:
        uri = f"azureml://datastores/{ARTIFACT_STORE}/{artifacts(job['name']).rstrip('/')}"
        outputs["default"] = {
            "description": None, "jobOutputType": "uri_folder", "mode": "ReadWriteMount", "uri": uri,
        }  # fmt: skip
    return outputs


def essence(wire: dict[str, Any]) -> str:
    """What makes two definitions the same, whether the client made it or read it from here."""
    details = _object(wire.get("fineTuningDetails"))
    output = _object(_object(wire.get("outputs")).get("registered_model"))
    parts = ("model", "trainingData", "validationData")
    managed = {key: wire.get(key) for key in ("computeId", "resources", "queueSettings")}
    return json.dumps(
        [
            wire.get("jobType"),
            wire.get("experimentName") or EXPERIMENT,
            str(details.get("taskType")).lower(),
            str(details.get("modelProvider")).lower(),
            [_object(details.get(part)).get("uri") for part in parts],
            details.get("hyperParameters") or {},
            output.get("assetName"),
            {key: value for key, value in managed.items() if value},
            *pipelines.essence(wire),
        ],
        sort_keys=True,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _properties(job: Body) -> dict[str, Any]:
    """The job's own properties and those that the service adds."""
    details = job["wire"]["fineTuningDetails"]
    model = details["model"]["uri"]
    managed = any(job["wire"].get(key) for key in ("computeId", "resources", "queueSettings"))
    added = {
        "PipelineType": "FineTuning",
        "original_model_id": model,
        "azureml.ModelName": job["entry"],
        "azureml.PipelineType": "FineTuning",
        "azureml.original_model_id": model,
        "azureml.trainingData.assetId": details["trainingData"]["uri"],
        "_fineTuningJobType": "MaaP" if managed else "MaaS",
        "StartTimeUtc": job["created"][:19].replace("T", " "),
    }
    if details.get("validationData"):
        added["azureml.validationData.assetId"] = details["validationData"]["uri"]
    if job["ended"]:
        added["EndTimeUtc"] = job["ended"][:19].replace("T", " ")
    if job["output"]:
        added["_outputModelName"] = job["output"]
    if "base" in job:  # ours: no program takes a stand-in's result for Phi-3's
        added["mockTrainedOn"] = job["base"]
        added["mockSimulated"] = str(job["simulated"]).lower()
    return {**(job["wire"].get("properties") or {}), **added}
