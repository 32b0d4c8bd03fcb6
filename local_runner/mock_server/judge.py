"""What the service refuses when a job arrives. It decides with the very code that the client plans with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from local_runner.mock_server import twin as world
from local_runner.mock_server.doors import managed
from local_runner.mock_server.errors import ServiceError, not_found, user_error
from local_runner.mock_server.twin import Twin
from maas_client.errors import DatasetError, PlanError
from maas_client.plan import DataPlan, make_plan
from maas_client.spec import dataset, hyperparameters
from maas_client.spec.catalog import ModelEntry, find_model
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits, hosted_limits

_INNER = {
    "bad_rows": "InvalidTrainingData",
    "output_name": "MissingOutputName",
    "refused": "InvalidHyperParameter",
    "task": "UnsupportedTask",
}
_TIERS = {tier.lower(): tier for tier in ("Null", "Spot", "Basic", "Standard", "Premium")}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that will run, and its rows on this disk."""

    job: FineTuningJob
    entry: ModelEntry
    data: dict[str, Path]
    """`training_data`, and `validation_data` where there is some."""
    pipeline: dict[str, Any] | None = None
    """What is remembered of the pipeline that asked for it."""


def judge(twin: Twin, name: str, properties: dict[str, Any], folder: Path) -> Accepted:
    """Accept the job, or refuse it as the service would.

    Args:
        twin: the service.
        name: the job's name, out of the path.
        properties: the body's `properties`, as the SDK sends them.
        folder: gets links to the rows: what was checked is what will be trained, even if a blob is
            overwritten or deleted meanwhile.

    Raises:
        ServiceError: with the service's status, codes and text.
    """
    return accept(twin, _job(name, properties), folder)


def accept(twin: Twin, job: FineTuningJob, folder: Path) -> Accepted:
    """Accept a job in our own words, or refuse it as the service would.

    Raises:
        ServiceError: with the service's status, codes and text.
    """
    entry = _entry(twin, job)
    managed.check(twin, job, entry)
    data = {}
    for key, word in (("training_data", "trainingData"), ("validation_data", "validationData")):
        if (source := getattr(job, key)) is not None:
            data[key] = folder / f"{key}.jsonl"
            take(twin, source.path, word, data[key])
    plans = {key: _checked(path, job.task) for key, path in data.items()}
    try:
        make_plan(
            job,
            hosted(twin, job),
            training=plans["training_data"],
            validation=plans.get("validation_data"),
        )
    except PlanError as error:
        first = error.problems[0]
        text = " ".join(problem.message for problem in error.problems)
        raise user_error(text, inner=_INNER.get(first.code, "BadArgument")) from error
    return Accepted(job, entry, data)


def hosted(twin: Twin, job: FineTuningJob) -> Limits:
    """The service's limits for the job's model, at the catalogue's date."""
    return hosted_limits(
        job.model,
        target="The service",
        managed_compute=job.managed_compute,
        region=twin.site.region,
        today=twin.site.as_of,
        retirement_refuses=True,
    )


def _job(name: str, properties: dict[str, Any]) -> FineTuningJob:
    """The wire's words as a job file's."""
    if properties.get("jobType") != "FineTuning":
        raise user_error(
            f"jobType {properties.get('jobType')!r} is not served by the mock; FineTuning is.",
            inner="UnsupportedJobType",
        )
    details = properties.get("fineTuningDetails")
    if not isinstance(details, dict):
        raise user_error("fineTuningDetails is required.", inner="MissingFineTuningDetails")
    provider = str(details.get("modelProvider", ""))
    if provider.lower() != "custom":
        raise user_error(
            f"modelProvider {provider!r} is not supported for this workspace; Custom is.",
            inner="UnsupportedModelProvider",
        )
    raw = {
        "name": name,
        "display_name": properties.get("displayName"),
        "experiment_name": properties.get("experimentName"),
        "description": properties.get("description"),
        "tags": properties.get("tags") or {},
        "properties": properties.get("properties") or {},
        "task": _snake(details.get("taskType")),
        "model_provider": "custom",
        "model": _input(details.get("model"), "model", "mlflow_model"),
        "training_data": _input(details.get("trainingData"), "trainingData", "uri_file"),
        "validation_data": _input(details["validationData"], "validationData", "uri_file")
        if details.get("validationData")
        else None,
        "hyperparameters": details.get("hyperParameters") or {},
        "outputs": _outputs(properties.get("outputs") or {}),
        "compute": properties.get("computeId"),
        "resources": _resources(properties.get("resources")),
        "queue_settings": _queue(properties.get("queueSettings")),
    }
    return read_job(raw)


def read_job(raw: dict[str, Any]) -> FineTuningJob:
    """A job file's words as a job.

    Raises:
        ServiceError: they make none.
    """
    _check_knobs(raw["hyperparameters"])
    try:
        return FineTuningJob.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        inner = "InvalidJobName" if where == "name" else "InvalidJobDefinition"
        raise user_error(f"{where}: {first['msg']}", inner=inner) from error


def _check_knobs(given: Any) -> None:
    if not isinstance(given, dict):
        raise user_error(
            "hyperParameters must map names to strings.", inner="InvalidHyperParameter"
        )
    for key, text in given.items():
        if text is not None and not isinstance(text, str):
            raise user_error(
                f"hyperParameters.{key} must be a string.", inner="InvalidHyperParameter"
            )
        if text is not None and (fault := hyperparameters.fault(key, text)):
            raise user_error(f"{fault.message} ({fault.hint})", inner="InvalidHyperParameter")


def _input(raw: Any, name: str, kind: str) -> dict[str, Any]:
    uri = raw.get("uri") if isinstance(raw, dict) else None
    if not isinstance(uri, str) or not uri:
        raise user_error(f"{name}.uri is required.", inner="MissingInput")
    return {"path": uri, "type": raw.get("jobInputType") or kind}


def _outputs(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise user_error("outputs must be an object.", inner="InvalidOutputs")
    for key, entry in raw.items():
        if not isinstance(entry, dict):
            raise user_error(f"outputs.{key} must be an object.", inner="InvalidOutputs")
    return {
        key: {"name": entry.get("assetName"), "type": entry.get("jobOutputType") or "mlflow_model"}
        for key, entry in raw.items()
    }


def _resources(raw: Any) -> dict[str, Any] | None:
    types = raw.get("instanceTypes") if isinstance(raw, dict) else None
    return {"instance_types": types} if types else None


def _queue(raw: Any) -> dict[str, Any] | None:
    tier = raw.get("jobTier") if isinstance(raw, dict) else None
    if tier and str(tier).lower() not in _TIERS:
        raise user_error(
            f"queueSettings.jobTier {tier!r} is none of {', '.join(_TIERS.values())}.",
            inner="InvalidJobTier",
        )
    return {"job_tier": tier} if tier else None


def _snake(task: Any) -> Any:
    """ChatCompletion and chatCompletion alike: the service does not mind the case."""
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", task).lower() if isinstance(task, str) else task


def _entry(twin: Twin, job: FineTuningJob) -> ModelEntry:
    site = twin.site
    registry = re.match(r"azureml://registries/([^/]+)/", job.model.path)
    if registry and registry[1].lower() not in world.REGISTRIES:
        raise not_found("Registry", registry[1])
    entry = find_model(job.model.asset_name)
    if entry is None:
        raise not_found("Model", job.model.path)
    if job.model.version is not None and job.model.version not in entry.versions:
        raise not_found("Model", f"{entry.name}:{job.model.version}")
    here = site.region in entry.tuning_regions
    if not job.managed_compute and not (entry.serverless and here):
        raise user_error(
            f"{entry.name} : Serverless FineTuning not supported in {site.region}.",
            inner="ModelNotSupportedByMaaS",
        )
    if entry.is_retired(site.as_of):
        raise user_error(
            f"{entry.name} was retired on {entry.retired} and can no longer be fine-tuned. "
            f"Use {entry.replacement}.",
            inner="ModelRetired",
        )
    return entry


def take(twin: Twin, uri: str, name: str, target: Path) -> None:
    """Link the rows that a reference names.

    Raises:
        ServiceError: there are none.
    """
    if match := re.search(r"/data/([^/]+)/versions/([^/]+)$", uri):
        asset = twin.store.get("data", f"{match[1]}/{match[2]}".lower())
        if asset is None:
            raise not_found(f"{name}: Data version", f"{match[1]}:{match[2]}")
        uri = asset["properties"]["dataUri"]
    match = re.search(r"(?:^azureml://|/)datastores/([^/]+)/paths/(.+)$", uri)
    if match is None:
        raise user_error(
            f"{name}: {uri} cannot be read. Use a data asset or a path on a datastore of the workspace.",
            inner="UnsupportedDataUri",
        )
    if match[1].lower() not in (world.BLOB_STORE, world.ARTIFACT_STORE):
        raise not_found(f"{name}: Datastore", match[1])
    if twin.blobs.link(twin.site.container(match[1].lower()), match[2], target) is None:
        raise ServiceError(
            404, "UserError", f"{name}: no data was found at {uri}.", inner="DataNotFound"
        )


def _checked(path: Path, task: str) -> DataPlan:
    try:
        return DataPlan(str(path), dataset.check(path, task))
    except DatasetError as error:
        raise user_error(str(error), inner="UnsupportedTask") from error
