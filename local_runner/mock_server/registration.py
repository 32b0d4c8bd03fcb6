"""What a job that succeeded leaves in the workspace: artifacts and a registered model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_runner import mlmodel
from local_runner.mock_server.errors import user_error
from local_runner.mock_server.openai import outcomes
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import ARTIFACT_STORE, BLOB_STORE, Site, Twin
from maas_client.plan import plan_from_json
from maas_client.spec.rundir import RunDir, read_json


def publish(twin: Twin, job: Body, run: RunDir) -> None:
    """Copy the run's files to the workspace's storage and register the model. Can be done twice."""
    artifacts = twin.site.container(ARTIFACT_STORE)
    for file in run.records():
        twin.blobs.put_file(
            artifacts, f"ExperimentRun/dcid.{job['name']}/outputs/{file.name}", file
        )
    for name, kind in (job["pipeline"]["bound"] if "pipeline" in job else {}).items():
        if kind == "mlflow_model_folder":
            _put_model(twin, job, run, output_place(job["name"], name))
        else:
            _put_folder(twin, run.trained, output_place(job["name"], name))
    if job["output"] is not None:
        prefix = output_place(job["name"], "registered_model")
        _put_model(twin, job, run, prefix)
        _register(twin, job, run, prefix)
    if "openai" in job:
        outcomes.publish(twin, job, run)


def output_place(job: str, output: str) -> str:
    """Where a job's output is in the workspace's storage."""
    return f"azureml/{job}/{output}/"


def store_uri(site: Site, datastore: str, path: str) -> str:
    """The whole address of something on a datastore."""
    return (
        f"azureml://subscriptions/{site.subscription}/resourceGroups/{site.group}"
        f"/workspaces/{site.workspace}/datastores/{datastore}/paths/{path}"
    )


def _put_model(twin: Twin, job: Body, run: RunDir, prefix: str) -> None:
    container = twin.site.container(BLOB_STORE)
    said = mlmodel.texts(
        run, plan_from_json(read_json(run.plan_file)), run_id=job["name"], created=job["created"]
    )
    for place, text in said.items():
        twin.blobs.put(container, f"{prefix}{place}", text.encode())
    _put_folder(twin, run.adapter, f"{prefix}{mlmodel.ADAPTER}/")
    _put_folder(twin, run.merged, f"{prefix}{mlmodel.MERGED}/")


def _put_folder(twin: Twin, folder: Path, prefix: str) -> None:
    container = twin.site.container(BLOB_STORE)
    for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
        twin.blobs.put_file(container, f"{prefix}{file.relative_to(folder)}", file)


def _register(twin: Twin, job: Body, run: RunDir, prefix: str) -> None:
    output = job["output"]
    with twin.store.transaction():
        if job["version"] is None:
            taken = [
                int(doc.body["version"])
                for doc in twin.store.list("model", prefix=f"{output.lower()}/")
                if doc.body["version"].isdigit()
            ]
            job["version"] = str(max(taken, default=0) + 1)
            twin.store.change("job", job["key"], version=job["version"])
        key = f"{output}/{job['version']}".lower()
        twin.store.put("model", key, _model(twin, job, run, prefix))


def _model(twin: Twin, job: Body, run: RunDir, prefix: str) -> dict[str, Any]:
    status = run.read_status()
    return {
        "name": job["output"],
        "version": job["version"],
        "created": twin.clock.iso(),
        "base_model": job["entry"],
        "adapter": str(run.trained),
        "archived": False,
        "properties": {
            "modelType": "mlflow_model",
            "modelUri": store_uri(twin.site, BLOB_STORE, prefix),
            "jobName": job["name"],
            "description": None,
            "flavors": flavors(
                {
                    "python_function": {"loader_module": mlmodel.LOADER, "data": mlmodel.DATA},
                    "maas_finetune": {"model_data": mlmodel.ADAPTER, "task": job["spec"]["task"]},
                }
            ),
            "stage": None,
            "isAnonymous": False,
            "tags": {"task": job["spec"]["task"].replace("_", "-")},
            "properties": {
                "baseModelId": job["spec"]["model"]["path"],
                "baseModelWeightsVersion": "1.0",
                "hasDeltaWeights": "true",
                "maas-finetuning": "true",
                "mockTrainedOn": status.base if status else "",
                "mockSimulated": str(bool(status and status.simulated)).lower(),
            },
        },
    }


def flavors(described: Mapping[str, Any]) -> dict[str, Any]:
    """An MLmodel file's flavours as the wire has them: texts under `data`."""
    return {
        name: {"data": {key: str(value) for key, value in facts.items()}}
        for name, facts in described.items()
        if isinstance(facts, Mapping)
    }


def adapter_of(twin: Twin, model: Body) -> Path | None:
    """The folder that serving loads; None where the twin only simulates.

    Raises:
        ServiceError: a simulation left nothing that could be loaded.
    """
    if twin.engine.simulates:
        return None
    if model["properties"]["properties"]["mockSimulated"] == "true":
        raise user_error(
            f"{model['name']}:{model['version']} was simulated: there are no weights to answer with.",
            inner="ModelWasSimulated",
        )
    return Path(model["adapter"])
