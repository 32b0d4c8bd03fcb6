"""Jobs: submit, get, list, cancel, delete; and their run history."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from local_runner.mock_server.doors import pipeline_shape, pipelines
from local_runner.mock_server.doors.job_shape import OLD, essence, history, shown
from local_runner.mock_server.errors import (
    REPLACED,
    ServiceError,
    conflict,
    history_body,
    not_found,
    user_error,
)
from local_runner.mock_server.judge import Accepted, judge
from local_runner.mock_server.lifecycle import LIVE, STOPPABLE, first, move
from local_runner.mock_server.runs import artifacts, log_name, run_of
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import (
    ARTIFACT_STORE,
    LRO_PACE,
    WORKSPACE,
    Twin,
)
from local_runner.mock_server.wire import Call, Reply, Route, archived_wanted, whole_number
from local_runner.mock_server.worker import Worker
from maas_client.spec.job import NAME

HISTORY = f"/history/v1.0{WORKSPACE}"
_PAGE = 50
_MUTABLE = (("displayName", str), ("description", str), ("tags", dict))
"""What a job may have changed of it, and the type that it has."""
_TEXT, _MAP = {"type": ["string", "null"]}, {"type": ["object", "null"]}
_JOB = {
    "type": "object",
    "required": ["properties"],
    "properties": {
        "properties": {
            "type": "object",
            "required": ["jobType"],
            "properties": {
                "jobType": {"type": "string"},
                "displayName": _TEXT,
                "experimentName": _TEXT,
                "description": _TEXT,
                "tags": _MAP,
                "properties": _MAP,
                "fineTuningDetails": _MAP,
                "outputs": _MAP,
                "computeId": _TEXT,
                "resources": _MAP,
                "queueSettings": _MAP,
                "inputs": _MAP,
                "jobs": _MAP,
                "settings": _MAP,
            },
        }
    },
}
_CHANGE = {
    "type": "object",
    "properties": {
        "displayName": _TEXT,
        "description": _TEXT,
        "tags": _MAP,
        "properties": _MAP,
        "hidden": {"type": ["boolean", "null"]},
    },
}
_RUN = {"type": "object", "required": ["runId"], "properties": {"runId": {"type": "string"}}}


def routes(twin: Twin, worker: Worker) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin, worker)
    one, run = f"{WORKSPACE}/jobs/{{name}}", f"{HISTORY}/runs/{{name}}"
    change = f"{HISTORY}/experiments/{{experiment}}/runs/{{name}}"
    return [
        Route("PUT", one, door.put, source="recorded", call="jobs.create_or_update", body=_JOB),
        Route("GET", one, door.get, quick=True, source="recorded", call="jobs.get"),
        Route("GET", f"{WORKSPACE}/jobs", door.list, call="jobs.list"),
        Route("POST", f"{one}/cancel", door.cancel, call="jobs.begin_cancel"),
        Route("DELETE", one, door.delete, call="jobs.begin_delete"),
        Route("GET", f"{run}/details", door.details, quick=True, call="jobs.stream"),
        Route("GET", run, door.run, quick=True, call="jobs.list(parent_job_name)"),
        Route("GET", f"{run}/children", door.children, call="jobs.list(parent_job_name)"),
        Route("PATCH", change, door.patch, call="jobs.archive", body=_CHANGE),
        Route("POST", f"{HISTORY}/rundata", door.rundata, call="jobs.download", body=_RUN),
    ]


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
            _refuse_other(before, properties)
            changed = self._changed(before, properties)
            return Reply(200, self._shown(changed, call, fresh=True), self._location(name))
        job = self._accept(name, properties)
        self._worker.wake()
        return Reply(201, self._shown(job, call, fresh=True), self._location(name))

    def _changed(self, job: Body, given: dict[str, Any]) -> Body:
        """The job with what may change of it: azure-ai-ml 1.28 and 1.32 archive and update so."""
        with self._twin.store.transaction():
            job = self._twin.store.get("job", job["key"]) or job
            wire, archived = job["wire"], given.get("isArchived")
            fresh = {key: given[key] for key, kind in _MUTABLE if isinstance(given.get(key), kind)}
            archived = archived if isinstance(archived, bool) else job["archived"]
            if (wire | fresh, archived) == (wire, job["archived"]):
                return job
            return self._twin.store.change("job", job["key"], wire=wire | fresh, archived=archived)

    def _accept(self, name: str, properties: dict[str, Any]) -> Body:
        folder = self._new_folder(name)
        kept = False
        try:
            asked = pipelines.judge if properties.get("jobType") == "Pipeline" else judge
            accepted = asked(self._twin, name, properties, folder / "data")
            with self._twin.store.transaction():
                job = self._twin.store.get("job", name.lower())
                if job is not None:  # two were sent at once
                    _refuse_other(job, properties)
                else:
                    if not folder.exists():
                        raise ServiceError(503, "ServiceUnavailable", REPLACED)
                    self._refuse_too_many(accepted)
                    job = _body(self._twin, name, properties, accepted, folder)
                    self._twin.store.put("job", name.lower(), job)
                    pipelines.remember_runs(self._twin, job)
                    kept = True
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)
        return job

    def _shown(self, job: Body, call: Call, *, fresh: bool = False) -> dict[str, Any]:
        return shown(self._twin, job, call.query.get("api-version", ""), fresh=fresh)

    def _refuse_too_many(self, accepted: Accepted) -> None:
        controls, store = self._twin.controls, self._twin.store
        controls.check("jobs", store.count("job", states=LIVE))
        if accepted.job.registered_model and not accepted.pipeline:
            controls.check("models", store.count("model"))

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
        return Reply(body=self._shown(self._read(call), call))

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        view = call.query.get("listViewType", "ActiveOnly")
        before = whole_number(call.query.get("$skip"))
        docs = self._twin.store.list("job", before=before, limit=_PAGE + 1)
        wanted = archived_wanted(call.query)
        value = [
            self._shown(doc.body, call) for doc in docs[:_PAGE] if doc.body["archived"] in wanted
        ]
        link = None
        if len(docs) > _PAGE:
            query = f"api-version={call.query.get('api-version', OLD)}&listViewType={quote(view)}"
            base = f"{self._twin.site.url}{self._twin.arm_id('jobs')}"
            link = f"{base}?{query}&$skip={docs[_PAGE - 1].order}"
        return Reply(body={"value": value, "nextLink": link})

    def cancel(self, call: Call) -> Reply:
        job = self._found(call)
        job = move(self._twin, job, "CancelRequested", only=STOPPABLE)
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

    def delete(self, call: Call) -> Reply:
        job = self._found(call)
        if job["state"] in LIVE:
            raise conflict(f"Run {job['name']} is in the state {job['state']}; cancel it first.")
        self._twin.store.delete("job", job["key"])
        pipelines.forget_runs(self._twin, job)
        if job["version"] is None:  # else its model is served from there
            shutil.rmtree(run_of(self._twin, job).path, ignore_errors=True)
        container = self._twin.site.container(ARTIFACT_STORE)
        for blob in self._twin.blobs.list(container, artifacts(job["name"])):
            self._twin.blobs.delete(blob)
        return Reply(200)

    def details(self, call: Call) -> Reply:
        job = self._read(call)
        container = self._twin.site.container(ARTIFACT_STORE)
        logs, log = {}, log_name(str(job.get("root", job["name"])))
        if self._twin.blobs.get(container, log):
            name = pipeline_shape.log(job) if "pipeline" in job else "user_logs/std_log.txt"
            logs[name] = self._twin.blob_url(container, log)
        error = None
        if job["error"]:
            problem = ServiceError(400, "UserError", job["error"], inner="FineTuningFailed")
            error = history_body(problem, self._twin.site.region)
        return Reply(body=history(job) | {"logFiles": logs, "error": error, "warnings": None})

    def run(self, call: Call) -> Reply:
        return Reply(body=history(self._read(call)))

    def children(self, call: Call) -> Reply:
        below = pipelines.children(self._twin, self._read(call))
        return Reply(body={"value": [history(run) for run in below], "nextLink": None})

    def patch(self, call: Call) -> Reply:
        """What `jobs.update`, `archive` and `restore` send: tags and properties are merged."""
        given = call.json()
        with self._twin.store.transaction():
            job = self._found(call)
            wire = job["wire"]
            merged = {key: wire.get(key) for key in ("tags", "properties")}
            wire |= {key: given[key] for key, kind in _MUTABLE if isinstance(given.get(key), kind)}
            wire |= {
                key: (before or {}) | given[key]
                for key, before in merged.items()
                if isinstance(given.get(key), dict)
            }
            archived = given.get("hidden")
            fields = {"archived": archived} if isinstance(archived, bool) else {}
            job = self._twin.store.change("job", job["key"], wire=wire, **fields)
        return Reply(body=history(job))

    def rundata(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name = str(call.json().get("runId", ""))
        job = self._run(name)
        # A model among the outputs would crash azure-ai-ml's download; without it, it looks for blobs.
        return Reply(body={"runMetadata": history(job) | {"outputs": {}}})

    def _read(self, call: Call) -> Body:
        """The job, or a run inside a pipeline."""
        self._twin.check_workspace(call.params)
        return self._run(call.params["name"])

    def _run(self, name: str) -> Body:
        job = self._twin.store.get("job", name.lower()) or pipelines.find_run(self._twin, name)
        if job is None:
            raise not_found("Run", name)
        return job

    def _found(self, call: Call) -> Body:
        self._twin.check_workspace(call.params)
        job = self._twin.store.get("job", call.params["name"].lower())
        if job is None:
            raise not_found("Run", call.params["name"])
        return job


def _refuse_other(job: Body, properties: dict[str, Any]) -> None:
    """Whoever sends a job's name again must mean the same job."""
    if essence(job["wire"]) != essence(properties):
        raise conflict(
            f"A job with the name {job['name']} already exists, with another definition."
        )


def _body(twin: Twin, name: str, wire: dict[str, Any], accepted: Accepted, folder: Path) -> Body:
    return {
        "key": name.lower(),
        "name": name,
        **first(twin),
        "error": None,
        "archived": wire.get("isArchived") is True,
        "wire": wire,
        "spec": accepted.job.to_dict(),
        "entry": accepted.entry.name,
        "data": {key: str(path) for key, path in accepted.data.items()},
        "run": folder.name,
        "output": None if accepted.pipeline else accepted.job.registered_model,
        "version": None,
        "identity": twin.dice.uuid(),
        "at": twin.clock.time(),
        **({"pipeline": accepted.pipeline} if accepted.pipeline else {}),
    }
