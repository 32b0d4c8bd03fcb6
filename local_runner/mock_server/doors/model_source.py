"""What a new version of a model is made of: the folder that a job's output or a datastore's path names."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from local_runner.mock_server.doors import pipelines
from local_runner.mock_server.errors import ServiceError, not_found, user_error
from local_runner.mock_server.registration import flavors, output_place, store_uri
from local_runner.mock_server.runs import artifacts
from local_runner.mock_server.storage.blobs import Blob
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import ARTIFACT_STORE, BLOB_STORE, Twin
from maas_client.spec.catalog import find_model
from maas_client.spec.job import NAME
from maas_client.spec.weights import SIMULATED, TRAINED_ON

_JOB = re.compile(r"azureml://jobs/([^/]+)/outputs/([^/]+)(?:/paths/(.*))?")
_STORE = re.compile(r"azureml://(?:subscriptions/.+/)?datastores/([^/]+)/paths/(.+)")
_TYPES = ("custom_model", "mlflow_model", "triton_model")
_MLMODEL, _ADAPTER = "MLmodel", "adapter_config.json"
_MOST_BYTES = 256 * 1024
"""Of an MLmodel file; an honest one has a few thousand."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder, or one file, on a datastore."""

    datastore: str
    path: str
    job: str | None = None
    """The job whose output it is."""


def resolve(twin: Twin, uri: str) -> Place:
    """Where a model's files are.

    Raises:
        ServiceError: the address names nothing.
    """
    if match := _JOB.fullmatch(uri):
        return _of_job(twin, match[1], match[2], match[3] or "")
    if match := _STORE.fullmatch(uri):
        if match[1].lower() not in (BLOB_STORE, ARTIFACT_STORE):
            raise not_found("Datastore", match[1])
        job = re.match(r"azureml/([^/]+)/", match[2])
        known = job is not None and twin.store.get("job", job[1].lower()) is not None
        return Place(match[1].lower(), match[2], job[1] if job and known else None)
    raise user_error(
        f"modelUri {uri!r} cannot be read. Use a job's output or a path on a datastore.",
        inner="UnsupportedModelUri",
    )


def make(twin: Twin, name: str, version: str, given: dict[str, Any]) -> Body:
    """A new version of a model, with its weights kept where nobody deletes them.

    Raises:
        ServiceError: with the service's status, codes and text.
    """
    for word, text in (("name", name), ("version", version)):
        if not NAME.fullmatch(text):
            raise user_error(f"{text!r} is not a {word} of a model.", inner="InvalidAssetName")
    kind = given.get("modelType") or "custom_model"
    if kind not in _TYPES:
        raise user_error(f"modelType must be one of {', '.join(_TYPES)}.", inner="InvalidModelType")
    twin.controls.check("models", twin.store.count("model"))
    place = resolve(twin, str(given.get("modelUri") or ""))
    files = _files(twin, place)
    described = _described(twin, files)
    if kind == "mlflow_model" and not described:
        raise user_error(
            f"{place.path} has no {_MLMODEL} file: it is not an mlflow_model.",
            inner="InvalidMLflowModel",
        )
    return {
        "name": name,
        "version": version,
        "created": twin.clock.iso(),
        "base_model": _base(described),
        "adapter": _keep(twin, files),
        "archived": given.get("isArchived") is True,
        "properties": {
            "modelType": kind,
            "modelUri": store_uri(twin.site, place.datastore, place.path),
            "jobName": place.job,
            "description": given.get("description"),
            "flavors": flavors(said) if isinstance(said := described.get("flavors"), dict) else {},
            "stage": given.get("stage"),
            "isAnonymous": given.get("isAnonymous") is True,
            "tags": given.get("tags") or {},
            "properties": {**(given.get("properties") or {}), **_marks(described)},
        },
    }


def forget(model: Body) -> None:
    """Let go of the weights that `make` kept."""
    folder = Path(model["adapter"])
    if folder.name.startswith("~"):
        shutil.rmtree(folder, ignore_errors=True)


def _of_job(twin: Twin, name: str, output: str, path: str) -> Place:
    job = twin.store.get("job", name.lower()) or pipelines.find_run(twin, name)
    if job is None:
        raise not_found("Run", name)
    if job["state"] != "Completed":
        raise user_error(
            f"Run {name} is in the state {job['state']}: it has no outputs before it is Completed.",
            inner="RunNotCompleted",
        )
    root = str(job.get("root", job["name"]))
    if output == "default" and "inner" not in job:
        return Place(ARTIFACT_STORE, f"{artifacts(root)}{path}", root)
    if (place := _output(job, root, output)) is None:
        raise ServiceError(
            404, "UserError", f"Run {name} has no output {output}.", inner="OutputNotFound"
        )
    return Place(BLOB_STORE, f"{place}{path}", root)


def _output(job: Body, root: str, output: str) -> str | None:
    """The folder of a job's output; a run inside a pipeline has its component's outputs."""
    if "pipeline" not in job:
        return output_place(root, output) if output in (job["wire"].get("outputs") or {}) else None
    bound: dict[str, str] = job["pipeline"]["bound"]
    if "inner" in job:
        output = next((outer for outer, own in bound.items() if own == output), "")
    return output_place(root, output) if output in bound else None


def _files(twin: Twin, place: Place) -> list[Blob]:
    container = twin.site.container(place.datastore)
    folder = place.path.rstrip("/")
    files = twin.blobs.list(container, f"{folder}/")
    if not files and (single := twin.blobs.get(container, folder)):
        files = [single]
    if not files:
        raise ServiceError(
            404,
            "UserError",
            f"No files were found at {place.path} on the datastore {place.datastore}.",
            inner="ModelPathNotFound",
        )
    return files


def _described(twin: Twin, files: list[Blob]) -> dict[str, Any]:
    """What the folder's MLmodel file says; nothing where there is none that can be read."""
    found = min(
        (blob for blob in files if blob.name.rpartition("/")[2] == _MLMODEL),
        key=lambda blob: len(blob.name),
        default=None,
    )
    if found is None:
        return {}
    try:
        text = _plain(twin.blobs.path(found))
    except (OSError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise user_error(
            f"{found.name} cannot be read: {error}", inner="InvalidMLflowModel"
        ) from error
    return text if isinstance(text, dict) else {}


def _plain(file: Path) -> Any:
    """A YAML file as JSON has it: dates and what else YAML knows are texts."""
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    text = yaml.safe_load(file.read_text(encoding="utf-8"))
    return json.loads(json.dumps(text, default=str, allow_nan=False))


def _base(described: dict[str, Any]) -> str:
    """The base model of the catalogue that the weights belong to; nothing for any other model."""
    flavors = described.get("flavors")
    ours = flavors.get("maas_finetune") if isinstance(flavors, dict) else None
    uri = str(ours.get("base_model")) if isinstance(ours, dict) else ""
    match = re.search(r"/models/([^/]+)", uri)
    entry = find_model(match[1]) if match else None
    return entry.name if entry else ""


def _marks(described: dict[str, Any]) -> dict[str, str]:
    """What really made the weights, as the twin wrote it."""
    metadata = described.get("metadata")
    marks = metadata if isinstance(metadata, dict) else {}
    return {
        "mockTrainedOn": str(marks.get(TRAINED_ON, "")),
        "mockSimulated": str(marks.get(SIMULATED, "")),
    }


def _keep(twin: Twin, files: list[Blob]) -> str:
    """Give the adapter's files a second name beside the runs, which outlives job and blobs."""
    config = next((b.name for b in files if b.name.rpartition("/")[2] == _ADAPTER), None)
    if config is None:
        return ""
    folder = config.removesuffix(_ADAPTER)
    target = twin.site.home / "runs" / f"~{twin.dice.uuid()}"
    for blob in files:
        if blob.name.startswith(folder):
            twin.blobs.link(blob.container, blob.name, target / blob.name.removeprefix(folder))
    return str(target)
