"""Jobs: submit, get, list, cancel, delete; and their run history."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from local_runner.mock_server.errors import (
    ServiceError,
    conflict,
    history_body,
    not_found,
    user_error,
)
from local_runner.mock_server.judge import Accepted, judge
from local_runner.mock_server.lifecycle import LIVE, first, move
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import (
    ARTIFACT_STORE,
    LRO_PACE,
    WORKSPACE,
    Twin,
    system_data,
)
from local_runner.mock_server.wire import Call, Reply, Route, whole_number
from local_runner.mock_server.worker import Worker, artifacts, log_name, run_of
from maas_client.spec.job import NAME

HISTORY = f"/history/v1.0{WORKSPACE}"
_OLD = "2024-01-01-preview"
"""The api-version whose GET has another shape: some keys more, some fewer."""
_PAGE = 50


def routes(twin: Twin, worker: Worker) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin, worker)
    return [
        Route("PUT", f"{WORKSPACE}/jobs/{{name}}", door.put),
        Route("GET", f"{WORKSPACE}/jobs/{{name}}", door.get),
        Route("GET", f"{WORKSPACE}/jobs", door.list),
        Route("POST", f"{WORKSPACE}/jobs/{{name}}/cancel", door.cancel),
        Route("DELETE", f"{WORKSPACE}/jobs/{{name}}", door.delete),
        Route("GET", f"{HISTORY}/runs/{{name}}/details", door.details),
        Route("GET", f"{HISTORY}/runs/{{name}}", door.run),
        Route("GET", f"{HISTORY}/runs/{{name}}/children", door.children),
        Route("PATCH", f"{HISTORY}/experiments/{{experiment}}/runs/{{name}}", door.patch),
        Route("POST", f"{HISTORY}/rundata", door.rundata),
        Route("GET", "/subscriptions/{sub}/providers/Microsoft.MachineLearningServices"
              "/locations/{region}/mfeOperationResults/{operation}", door.cancelled),
    ]  # fmt: skip


class _Door:
    def __init__(self, twin: Twin, worker: Worker) -> None:
        self._twin = twin
        self._worker = worker

    def put(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, properties = call.params["name"], call.properties()
        if call.params["name"] != (call.json().get("name") or name):
            raise user_error(
                "The name in the body is not the name in the path.", inner="NameMismatch"
            )
        before = self._twin.store.get("job", name.lower())
        if before is not None:
            if _essence(before["wire"]) != _essence(properties):
                raise conflict(
                    f"A job with the name {name} already exists, with another definition."
                )
            return Reply(200, self._job(before, call, fresh=True), self._location(name))
        job = self._accept(name, properties)
        self._worker.wake()
        return Reply(201, self._job(job, call, fresh=True), self._location(name))

    def _accept(self, name: str, properties: dict[str, Any]) -> Body:
        folder = self._new_folder(name)
        kept = False
        try:
            accepted = judge(self._twin, name, properties, folder / "data")
            with self._twin.store.transaction():
                job = self._twin.store.get("job", name.lower())
                if job is None:  # else the same request was sent twice at once
                    job = _body(self._twin, name, properties, accepted, folder)
                    self._twin.store.put("job", name.lower(), job)
                    kept = True
        finally:
            if not kept:
                shutil.rmtree(folder)
        return job

    def _new_folder(self, name: str) -> Path:
        """A run directory that no run has had: a deleted job's name may come again."""
        if not NAME.fullmatch(name):
            raise user_error(
                f"{name!r} is not a job name: letters, digits, '-', '_' and '.', 255 at most.",
                inner="InvalidJobName",
            )
        runs, key = self._twin.site.home / "runs", name.lower()
        for n in itertools.count(1):
            folder = runs / (key if n == 1 else f"{key}~{n}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                break
        return folder

    def _location(self, name: str) -> dict[str, str]:
        return {"Location": f"{self._twin.site.url}{self._twin.arm_id('jobs', name)}"}

    def get(self, call: Call) -> Reply:
        return Reply(body=self._job(self._found(call), call))

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        view = call.query.get("listViewType", "ActiveOnly").lower()
        before = whole_number(call.query.get("$skip"))
        docs = self._twin.store.list("job", before=before, limit=_PAGE + 1)
        wanted = {"activeonly": (False,), "archivedonly": (True,)}.get(view, (False, True))
        value = [
            self._job(doc.body, call) for doc in docs[:_PAGE] if doc.body["archived"] in wanted
        ]
        link = None
        if len(docs) > _PAGE:
            query = f"api-version={call.query.get('api-version', _OLD)}&listViewType={view}"
            base = f"{self._twin.site.url}{self._twin.arm_id('jobs')}"
            link = f"{base}?{query}&$skip={docs[_PAGE - 1].order}"
        return Reply(body={"value": value, "nextLink": link})

    def cancel(self, call: Call) -> Reply:
        job = self._found(call)
        job = move(self._twin, job, "CancelRequested", only=("Queued", "Running"))
        if job["state"] not in LIVE:
            raise user_error(
                f"Run {job['name']} is in the state {job['state']} and cannot be canceled.",
                inner="RunInTerminalState",
            )
        self._worker.wake()
        version = call.query.get("api-version", "2023-04-01-preview")
        operation = f"mfeOperationResults/cancel:{job['name']}"
        url = self._twin.site.operation_url(operation, version=version)
        return Reply(202, headers={"Location": url, **LRO_PACE})

    def cancelled(self, call: Call) -> Reply:
        """How far a cancellation, or the deletion of an endpoint, is."""
        kind, _, name = call.params["operation"].partition(":")
        if kind == "cancel":
            job = self._twin.store.get("job", name.lower())
            going_on = job is not None and job["state"] in LIVE
        else:
            going_on = self._twin.store.get("endpoint", name.lower()) is not None
        if not going_on:
            return Reply(200)
        version = call.query.get("api-version", "")
        url = f"{self._twin.site.url}{call.path}?api-version={version}"
        return Reply(202, headers={"Location": url, **LRO_PACE})

    def delete(self, call: Call) -> Reply:
        job = self._found(call)
        if job["state"] in LIVE:
            raise conflict(f"Run {job['name']} is in the state {job['state']}; cancel it first.")
        self._twin.store.delete("job", job["key"])
        if job["version"] is None:  # else its model is served from there
            shutil.rmtree(run_of(self._twin, job).path, ignore_errors=True)
        container = self._twin.site.container(ARTIFACT_STORE)
        for blob in self._twin.blobs.list(container, artifacts(job["name"])):
            self._twin.blobs.delete(blob)
        return Reply(200)

    def details(self, call: Call) -> Reply:
        job = self._found(call)
        container = self._twin.site.container(ARTIFACT_STORE)
        logs = {}
        if self._twin.blobs.get(container, log_name(job["name"])):
            logs["user_logs/std_log.txt"] = self._twin.blob_url(container, log_name(job["name"]))
        error = None
        if job["error"]:
            problem = ServiceError(400, "UserError", job["error"], inner="FineTuningFailed")
            error = history_body(problem, self._twin.site.region)
        return Reply(body=self._history(job) | {"logFiles": logs, "error": error, "warnings": None})

    def run(self, call: Call) -> Reply:
        return Reply(body=self._history(self._found(call)))

    def children(self, call: Call) -> Reply:
        self._found(call)
        return Reply(body={"value": [], "nextLink": None})

    def patch(self, call: Call) -> Reply:
        """What `jobs.update`, `archive` and `restore` send."""
        given = call.json()
        with self._twin.store.transaction():
            job = self._found(call)
            wire = job["wire"]
            if isinstance(given.get("tags"), dict):
                wire["tags"] = given["tags"]
            for key in ("displayName", "description"):
                if isinstance(given.get(key), str):
                    wire[key] = given[key]
            archived = given.get("hidden")
            fields = {"archived": archived} if isinstance(archived, bool) else {}
            job = self._twin.store.change("job", job["key"], wire=wire, **fields)
        return Reply(body=self._history(job))

    def rundata(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name = str(call.json().get("runId", ""))
        job = self._twin.store.get("job", name.lower())
        if job is None:
            raise not_found("Run", name)
        # A model among the outputs would crash azure-ai-ml's download; without it, it looks for blobs.
        return Reply(body={"runMetadata": self._history(job) | {"outputs": {}}})

    def _found(self, call: Call) -> Body:
        self._twin.check_workspace(call.params)
        job = self._twin.store.get("job", call.params["name"].lower())
        if job is None:
            raise not_found("Run", call.params["name"])
        return job

    def _history(self, job: Body) -> dict[str, Any]:
        return {
            "runId": job["name"],
            "status": _shown(job),
            "displayName": job["wire"].get("displayName"),
            "startTimeUtc": job["created"],
            "endTimeUtc": job["ended"],
            "properties": _properties(job),
            "tags": job["wire"].get("tags") or {},
        }

    def _job(self, job: Body, call: Call, *, fresh: bool = False) -> dict[str, Any]:
        """The job in the shape of the call's api-version (recorded 2024-11-25)."""
        wire, details = job["wire"], job["wire"]["fineTuningDetails"]
        old = call.query.get("api-version") == _OLD
        task = str(details["taskType"])
        extra = {"secretsConfiguration": None} if old else {
            "resources": wire.get("resources"), "queueSettings": wire.get("queueSettings")
        }  # fmt: skip
        return {
            "id": self._twin.arm_id("jobs", job["name"]),
            "name": job["name"],
            "type": "Microsoft.MachineLearningServices/workspaces/jobs",
            "systemData": system_data(job["created"]),
            "properties": {
                "description": wire.get("description"),
                "tags": wire.get("tags") or {},
                "properties": _properties(job),
                "displayName": wire.get("displayName") or job["name"],
                # Recorded: the reply to a PUT says Running, whatever is true a moment later.
                "status": "Running" if fresh and job["state"] in LIVE else _shown(job),
                "experimentName": wire.get("experimentName") or "Default",
                "services": self._services(job),
                "computeId": None if old else wire.get("computeId"),
                "isArchived": job["archived"],
                "identity": wire.get("identity"),
                "componentId": None,
                "notificationSetting": wire.get("notificationSetting"),
                "jobType": "FineTuning",
                "fineTuningDetails": {
                    "taskType": task[:1].upper() + task[1:],
                    "modelProvider": "Custom",
                    "hyperParameters": details.get("hyperParameters") or {},
                    **{
                        key: {"description": None, "mode": "ReadOnlyMount", **details[key]}
                        for key in ("model", "trainingData", "validationData")
                        if details.get(key)
                    },
                },
                "outputs": self._outputs(job, old=old),
                **extra,
            },
        }

    def _services(self, job: Body) -> dict[str, Any]:
        # The service answers null right after a PUT, and azure-ai-ml's stream dies of it: we do not.
        site = self._twin.site
        studio = f"https://ml.azure.com/runs/{job['name']}?wsid={site.workspace_path}"
        tracking = f"azureml://{site.api.removeprefix('https://')}/mlflow/v1.0{site.workspace_path}"
        return {
            "Tracking": {"jobServiceType": "Tracking", "endpoint": tracking, "status": None},
            "Studio": {"jobServiceType": "Studio", "endpoint": studio, "status": None},
        }

    def _outputs(self, job: Body, *, old: bool) -> dict[str, Any]:
        site, done = self._twin.site, job["state"] == "Completed"
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
            shown = {"description": None, "uri": uri, "mode": "ReadWriteMount", **nulls, **given}
            if version or old:
                shown["assetVersion"] = version
            outputs[key] = shown
        if done:
            uri = f"azureml://datastores/{ARTIFACT_STORE}/{artifacts(job['name']).rstrip('/')}"
            outputs["default"] = {
                "description": None, "jobOutputType": "uri_folder", "mode": "ReadWriteMount", "uri": uri,
            }  # fmt: skip
        return outputs


def _body(twin: Twin, name: str, wire: dict[str, Any], accepted: Accepted, folder: Path) -> Body:
    return {
        "key": name.lower(),
        "name": name,
        **first(twin),
        "error": None,
        "archived": False,
        "wire": wire,
        "spec": accepted.job.to_dict(),
        "entry": accepted.entry.name,
        "data": {key: str(path) for key, path in accepted.data.items()},
        "run": folder.name,
        "output": accepted.job.registered_model,
        "version": None,
        "identity": twin.dice.uuid(),
        "at": twin.clock.time(),
    }


def _essence(wire: dict[str, Any]) -> str:
    """What makes two definitions the same; git's notes about the working tree do not."""
    bare = {key: value for key, value in wire.items() if value not in (None, {}, [])}
    if isinstance(properties := bare.get("properties"), dict):
        noise = ("azureml.git", "mlflow.source.git")
        bare["properties"] = {k: v for k, v in properties.items() if not k.startswith(noise)}
    bare.pop("services", None)
    return json.dumps(bare, sort_keys=True)


def _shown(job: Body) -> str:
    return str(job["state"])


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
