"""A pipeline job in the service's words, and the runs inside it as run history tells them."""

from __future__ import annotations

from typing import Any

from local_runner.mock_server.doors import component_door
from local_runner.mock_server.registration import output_place
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import BLOB_STORE

_SHOWN = {"Queued": "Preparing"}
_STEP_STATES = {
    "Queued": ("NotStarted", "NotStarted", "NotStarted"),
    "Running": ("Completed", "Running", "NotStarted"),
    "CancelRequested": ("Completed", "CancelRequested", "NotStarted"),
    "Finalizing": ("Completed", "Completed", "Running"),
    "Completed": ("Completed", "Completed", "Completed"),
    "Failed": ("Completed", "Failed", "NotStarted"),
    "Canceled": ("Completed", "Canceled", "NotStarted"),
}
"""What the steps before the training, the training, and the step after it are in, by the job's state."""
_TRAINING = "chat_completion_finetune"
ROOT_LOG, STEP_LOG = "logs/azureml/executionlogs.txt", "user_logs/std_log.txt"
"""Under which name a run shows the training's log."""


def state(job: Body) -> str:
    """The run's state: a step's own, or the pipeline's."""
    inner, now = job.get("inner"), str(job["state"])
    if inner is None or not _is_step(job):
        return _SHOWN.get(now, now)
    steps = component_door.component()["steps"]
    training = steps.index(_TRAINING)
    place = steps.index(inner["step"])
    return _STEP_STATES[now][0 if place < training else 1 if place == training else 2]


def log(job: Body) -> str:
    """Under which name the run shows the training's log."""
    training = "inner" in job and _is_step(job) and job["inner"]["step"] == _TRAINING
    return STEP_LOG if training else ROOT_LOG


def properties(job: Body) -> dict[str, str]:
    """What the service adds to the properties of a pipeline's run."""
    if inner := job.get("inner"):
        return {
            "azureml.runsource": "azureml.StepRun" if _is_step(job) else "azureml.PipelineRun",
            "azureml.pipelinerunid": job["root"],
            "azureml.moduleName": inner["step"],
            "azureml.nodeid": job["name"][:8],
        }
    settings = job["wire"].get("settings") or {}
    added = {
        "azureml.DevPlatv2": "true",
        "azureml.runsource": "azureml.PipelineRun",
        "runSource": "MFE",
        "runType": "HTTP",
        "azureml.parameters": "{}",
        "azureml.continue_on_step_failure": str(settings.get("continue_on_step_failure", False)),
        "azureml.enforceRerun": str(settings.get("force_rerun", False)),
        "azureml.defaultDataStoreName": BLOB_STORE,
        "azureml.defaultComputeName": settings.get("default_compute") or "",
        "azureml.pipelineComponent": "pipelinerun",
        "_fineTuningJobType": "MaaP",
    }
    if "base" in job:  # ours: no program takes a stand-in's result for Phi-3's
        added["mockTrainedOn"] = job["base"]
        added["mockSimulated"] = str(job["simulated"]).lower()
    return {**(job["wire"].get("properties") or {}), **added}


def history(job: Body) -> dict[str, Any]:
    """The pipeline, or a run inside it, as run history tells it."""
    inner = job.get("inner")
    kind = "azureml.StepRun" if inner and _is_step(job) else "azureml.PipelineRun"
    return {
        "runId": job["name"],
        "parentRunId": inner["parent"] if inner else None,
        "rootRunId": job.get("root", job["name"]),
        "experimentId": job["wire"].get("experimentName") or "Default",
        "runType": kind,
        "status": state(job),
        "displayName": inner["step"] if inner else job["wire"].get("displayName"),
        "createdUtc": job["created"],
        "startTimeUtc": job["created"],
        "endTimeUtc": job["ended"],
        "properties": properties(job),
        "tags": {} if inner else job["wire"].get("tags") or {},
    }


def shown(job: Body, common: dict[str, Any]) -> dict[str, Any] | None:
    """The pipeline's `properties`; `common` is what it has like every job.

    A run inside a pipeline has none: azure-ai-ml then asks run history for it.
    """
    if "inner" in job:
        return None
    wire = job["wire"]
    return common | {
        "properties": properties(job),
        "status": state(job),
        "jobType": "Pipeline",
        "inputs": wire.get("inputs") or {},
        "jobs": wire["jobs"],
        "outputs": _outputs(job),
        "settings": wire.get("settings") or {},
        "sourceJobId": None,
    }


def _outputs(job: Body) -> dict[str, Any]:
    done = job["state"] == "Completed"
    return {
        key: {
            "description": None,
            "uri": f"azureml://datastores/{BLOB_STORE}/paths/{output_place(job['name'], key)}"
            if done
            else None,
            "mode": "ReadWriteMount",
            **(given or {}),
        }
        for key, given in (job["wire"].get("outputs") or {}).items()
    }


def _is_step(job: Body) -> bool:
    """Whether the run is a step's; the node's own is right below the pipeline's."""
    return bool(job["inner"]["parent"] != job["root"])
