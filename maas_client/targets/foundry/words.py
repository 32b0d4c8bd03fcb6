"""The service's words in ours, and ours in its: statuses, hyperparameters, shapes. Pure."""

from __future__ import annotations

import base64
import binascii
import csv
import datetime as dt
import io
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from maas_client.errors import TargetError
from maas_client.jobs import Checkpoint, Endpoint, EventKind, Job, JobStatus, StoredFile
from maas_client.plan import Plan
from maas_client.spec.catalog import ModelEntry, find_model
from maas_client.spec.hyperparameters import KNOBS, Value
from maas_client.spec.job import FineTuningJob
from maas_client.targets.base import known_status
from maas_client.transport import redact

Raw = Mapping[str, Any]

_STATUS: Mapping[str, JobStatus] = {
    "validating_files": JobStatus.QUEUED,
    "pending": JobStatus.QUEUED,
    "queued": JobStatus.QUEUED,
    "resuming": JobStatus.QUEUED,
    "running": JobStatus.RUNNING,
    "pausing": JobStatus.RUNNING,
    "paused": JobStatus.PAUSED,
    "succeeded": JobStatus.SUCCEEDED,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELLED,
}

_TOLD: Mapping[str, JobStatus] = {
    "Fine-tuning job started": JobStatus.RUNNING,
    "Fine-tuning job paused": JobStatus.PAUSED,
    "Fine-tuning job is resuming": JobStatus.QUEUED,
}
"""Messages that say where the job stands from then on; its end is told by the job itself."""

SAID: Mapping[str, str] = {
    "num_train_epochs": "n_epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "learning_rate": "learning_rate_multiplier",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "seed": "seed",
}
"""Our knob -> what it is on this wire. There is nothing else that it can say."""

_METRICS: Mapping[str, str] = {
    "step": "step",
    "total_steps": "max_steps",
    "train_loss": "loss",
    "valid_loss": "eval_loss",
    "full_valid_loss": "eval_loss",
    "train_accuracy": "token_accuracy",
    "train_mean_token_accuracy": "token_accuracy",
    "valid_mean_token_accuracy": "eval_token_accuracy",
    "full_valid_mean_token_accuracy": "eval_token_accuracy",
    "learning_rate": "learning_rate",
}
"""The service's metric -> ours; of two that mean one thing, the later is the whole of it."""
_WHOLE = frozenset({"step", "max_steps"})

_DEPLOYMENT: Mapping[str, str] = {
    "accepted": "creating",
    "creating": "creating",
    "updating": "creating",
    "scaling": "creating",
    "moving": "creating",
    "succeeded": "online",
    "deleting": "deleting",
    "disabled": "suspended",
    "failed": "failed",
    "canceled": "failed",
}


def hyperparameters(values: Mapping[str, Value | None], entry: ModelEntry | None) -> dict[str, Any]:
    """The three that a supervised job takes, out of a plan's values."""
    rate = multiplier(values, entry)
    return {
        "n_epochs": int(values["num_train_epochs"] or 1),
        "batch_size": batch(values),
        "learning_rate_multiplier": float(rate) if rate.denominator > 1 else int(rate),
    }


def job_body(plan: Plan, training: str, validation: str | None) -> dict[str, Any]:
    """What `POST /fine_tuning/jobs` gets.

    Args:
        plan: what the target has agreed to.
        training: the id of the training file.
        validation: the id of the validation file.
    """
    entry = find_model(plan.job.model.asset_name)
    said = hyperparameters(plan.values, entry)
    body: dict[str, Any] = {
        "model": entry.name if entry else plan.job.model.asset_name,
        "training_file": training,
        "seed": plan.seed,
        "method": {"type": "supervised", "supervised": {"hyperparameters": said}},
        "metadata": metadata(plan.job, key=getattr(plan, "key", None)),
    }
    if validation is not None:
        body["validation_file"] = validation
    if plan.job.registered_model:
        body["suffix"] = plan.job.registered_model
    return body


KEY = "maas_key"
"""The metadata that names a submission, so that it can be found again."""
NAME = "maas_name"


def metadata(job: FineTuningJob, *, key: str | None = None) -> dict[str, str]:
    """The job's words about itself, and what finds it again."""
    ours = {
        KEY: key,
        NAME: job.name,
        "display_name": job.display_name,
        "experiment_name": job.experiment_name,
        "description": job.description,
    }
    given = {name: value or "" for name, value in job.tags.items()}
    return given | {name: value for name, value in ours.items() if value}


def job_file(raw: Raw) -> FineTuningJob:
    """A job file that says what the service says of a job that somebody else submitted."""
    notes = raw.get("metadata") or {}
    entry = find_model(raw["model"])
    method = (raw.get("method") or {}).get("supervised") or {}
    said = method.get("hyperparameters") or raw.get("hyperparameters") or {}
    knobs = {
        "num_train_epochs": said.get("n_epochs"),
        "per_device_train_batch_size": said.get("batch_size"),
        "learning_rate_multiplier": said.get("learning_rate_multiplier"),
        "seed": raw.get("seed"),
    }
    known = {key: str(value) for key, value in knobs.items() if value not in (None, "auto")}
    fields: dict[str, Any] = {
        "name": notes.get(NAME),
        "display_name": notes.get("display_name"),
        "description": notes.get("description"),
        "task": "chat_completion",
        "model_provider": "custom",
        "model": entry.asset_id() if entry else raw["model"],
        "training_data": raw["training_file"],
        "validation_data": raw.get("validation_file"),
        "hyperparameters": known,
    }
    return FineTuningJob.model_validate({key: value for key, value in fields.items() if value})


def job_status(word: str) -> JobStatus:
    """Our word for the service's.

    Raises:
        TargetError: the service says a word that we do not know.
    """
    return known_status(_STATUS, word)


def job(raw: Raw, *, target: str) -> Job:
    """A fine-tuning job."""
    notes = raw.get("metadata") or {}
    status = job_status(raw["status"])
    return Job(
        id=raw["id"],
        status=status,
        model=raw["model"],
        target=target,
        display_name=notes.get("display_name") or notes.get(NAME) or "",
        created_at=raw.get("created_at"),
        ended_at=raw.get("finished_at") if status.is_terminal else None,
        error=reason(raw.get("error")) if status is JobStatus.FAILED else None,
        output_model=raw.get("fine_tuned_model"),
        simulated=str(notes.get("mock_simulated", "")).lower() == "true",
        base=notes.get("mock_trained_on", ""),
    )


def reason(error: Any) -> str:
    """Why a job failed."""
    raw = error if isinstance(error, dict) else {}
    code, message = raw.get("code") or "", raw.get("message") or ""
    if not code and not message:
        return "the service gave no reason"
    return redact(f"{code}: {message}" if code and message else code or message)


def event(raw: Raw) -> tuple[EventKind, str, dict[str, Any]]:
    """Kind, message and data of one event."""
    message = redact(str(raw.get("message") or ""))
    data = metrics(raw.get("data") or {})
    if raw.get("type") == "metrics" and {"loss", "eval_loss"} & data.keys():
        return "metric", message or f"step {data.get('step', '?')}", data
    if (status := _TOLD.get(message)) is not None:
        return "status", str(status), {"status": str(status)}
    level = raw.get("level") or "info"
    return "log", message if level == "info" else f"{level}: {message}", {}


def metrics(raw: Raw) -> dict[str, Any]:
    """The service's numbers under our names; those that are absent or no numbers are left out."""
    found: dict[str, Any] = {}
    for theirs, ours in _METRICS.items():
        try:
            value = float(raw[theirs])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            found[ours] = int(value) if ours in _WHOLE else value
    return found


def results(content: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a result file. OpenAI's own sends them in base64."""
    if not content.lstrip(b"\xef\xbb\xbf").startswith(b"step"):
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error:
            raise TargetError("the result file is neither CSV nor base64 of it") from None
    for row in csv.DictReader(io.StringIO(content.decode("utf-8-sig", errors="replace"))):
        if found := metrics(row):
            yield found


def checkpoint(raw: Raw) -> Checkpoint:
    found = metrics(raw.get("metrics") or {})
    found.pop("step", None)
    return Checkpoint(
        id=raw["id"],
        step=raw["step_number"],
        model=raw["fine_tuned_model_checkpoint"],
        created_at=raw.get("created_at"),
        metrics=found,
    )


def stored_file(raw: Raw) -> StoredFile:
    return StoredFile(
        id=raw["id"],
        name=raw.get("filename") or "",
        bytes=raw.get("bytes") or 0,
        purpose=raw.get("purpose") or "",
        status=raw.get("status") or "",
        created_at=raw.get("created_at"),
    )


def deployment(raw: Raw, *, base_url: str) -> Endpoint:
    """A deployment as ARM shows it."""
    properties = raw.get("properties") or {}
    state = str(properties.get("provisioningState", "")).lower()
    created = (raw.get("systemData") or {}).get("createdAt")
    return Endpoint(
        name=raw["name"],
        state=_DEPLOYMENT.get(state, "unknown"),  # type: ignore[arg-type]  # the table's words are its
        model=(properties.get("model") or {}).get("name", ""),
        scoring_uri=base_url.removesuffix("/v1"),
        created_at=dt.datetime.fromisoformat(created[:19] + "+00:00").timestamp()
        if created
        else None,
    )


def deployment_body(model: str, *, sku: str) -> dict[str, Any]:
    """What ARM is asked for."""
    return {
        "sku": {"name": sku, "capacity": 1},
        "properties": {"model": {"format": "OpenAI", "name": model, "version": "1"}},
    }


def model(raw: Raw, *, base_url: str) -> Endpoint:
    """A model that answers by its name, as an endpoint."""
    return Endpoint(
        name=raw["id"],
        state="online",
        model=raw["id"],
        scoring_uri=base_url.removesuffix("/v1"),
        created_at=raw.get("created"),
    )


def batch(values: Mapping[str, Value | None]) -> int:
    return int(values["per_device_train_batch_size"] or 1) * int(
        values["gradient_accumulation_steps"] or 1
    )


def multiplier(values: Mapping[str, Value | None], entry: ModelEntry | None) -> Fraction:
    """The learning rate as a multiple of the model's own."""
    given = Fraction(Decimal(repr(values["learning_rate"])))
    scale = values.get("learning_rate_multiplier")
    scaled = Fraction(1) if scale is None else Fraction(Decimal(repr(scale)))
    return given / Fraction(Decimal(repr(default_rate(entry)))) * scaled


def default_rate(entry: ModelEntry | None) -> float:
    default = KNOBS["learning_rate"].default
    return (
        float(entry.defaults.get("learning_rate") or default or 0) if entry else float(default or 0)
    )
