"""A fine-tuning job in OpenAI's words, made into one of the twin's: what is refused, what is remembered."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_runner.mock_server.errors import REPLACED, ServiceError
from local_runner.mock_server.judge import judge
from local_runner.mock_server.lifecycle import LIVE, first
from local_runner.mock_server.openai import files, knobs
from local_runner.mock_server.openai.access import invalid, no_such, text
from local_runner.mock_server.openai.lists import checked_metadata
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from maas_client.spec.catalog import ModelEntry, find_model

ORGANIZATION = "org-mock"
MIN_ROWS = 10
_OWNER = "mock"
"""The organisation's short name in a model's."""
_SUFFIX_AZURE, _SUFFIX = 18, 64
_SUFFIX_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_MAX_SEED = 2**31 - 1
_METHODS = ("supervised", "dpo", "reinforcement")
_TRAINING_TYPES = ("standard", "globalstandard", "developer", "developertier")
_KNOWN = frozenset(
    ("model", "training_file", "validation_file", "suffix", "seed", "method", "hyperparameters",
     "integrations", "metadata", "trainingType")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, checked."""

    model: str
    entry: ModelEntry
    training: Body
    validation: Body | None
    hyperparameters: dict[str, Any]
    seed: int
    suffix: str
    metadata: dict[str, str] | None
    training_type: str | None


def read(twin: Twin, given: dict[str, Any], *, azure: bool) -> Request:
    """Read a request.

    Raises:
        ServiceError: as the service refuses it.
    """
    for key in given:
        if key not in _KNOWN:
            raise invalid(
                f"Unknown parameter: '{key[:50]}'.", param=key[:50], code="unknown_parameter"
            )
    model = text(given, "model")
    entry = find_entry(twin, model)
    training = _rows(twin, text(given, "training_file"), "training_file")
    validation = None
    if given.get("validation_file") is not None:
        validation = _rows(twin, text(given, "validation_file"), "validation_file")
    _refuse_integrations(given.get("integrations"))
    return Request(
        model=model,
        entry=entry,
        training=training,
        validation=validation,
        hyperparameters=_hyperparameters(given),
        seed=_seed(twin, given.get("seed")),
        suffix=_suffix(given.get("suffix"), _SUFFIX_AZURE if azure else _SUFFIX),
        metadata=checked_metadata(given.get("metadata")),
        training_type=_training_type(given.get("trainingType")),
    )


def find_entry(twin: Twin, model: str) -> ModelEntry:
    """The catalogue's model that a name means, in any case, with or without a date.

    Raises:
        ServiceError: none can be tuned under that name.
    """
    entry, site = find_model(_DATE.sub("", model)), twin.site
    fit = entry is not None and entry.serverless and site.region in entry.tuning_regions
    if entry is None or not fit or entry.is_retired(site.as_of):
        more = f" Use {entry.replacement}." if entry and entry.is_retired(site.as_of) else ""
        raise invalid(
            f"Model {model[:100]} is not available for fine-tuning or does not exist.{more}",
            param="model",
            code="model_not_available",
        )
    return entry


def accept(twin: Twin, asked: Request) -> Body:
    """Make the job, and remember it.

    Raises:
        ServiceError: the workspace takes no more of them, or a file has gone.
    """
    short = twin.dice.uuid().replace("-", "")
    name = f"ftjob-{short}"
    folder = twin.site.home / "runs" / name
    folder.mkdir(parents=True)
    try:
        numbers = knobs.resolved(asked.hyperparameters, rows=asked.training["rows"])
        wire = _wire(asked, name, numbers)
        accepted = judge(twin, name, wire, folder / "data")
        job = {
            "key": name,
            "name": name,
            **first(twin, "Preparing"),
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
            "openai": _remembered(asked, short, numbers),
        }
        _put(twin, job, folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ServiceError) and error.inner == "DataNotFound":
            raise no_such("File object", asked.training["id"], param="training_file") from error
        raise
    return job


def _put(twin: Twin, job: Body, folder: Path) -> None:
    with twin.store.transaction():
        if not folder.exists():
            raise ServiceError(503, "ServiceUnavailable", REPLACED)
        twin.controls.check("jobs", twin.store.count("job", states=LIVE))
        twin.controls.check("models", twin.store.count("model"))
        twin.store.put("job", job["key"], job)


def find(twin: Twin, number: str) -> Body:
    """The job of that id, if it was made at these doors.

    Raises:
        ServiceError: there is none.
    """
    job = twin.store.get("job", number)
    if job is None or "openai" not in job:
        raise invalid(
            f"Could not find fine tune: {number[:100]}",
            param="fine_tune_id",
            code="fine_tune_not_found",
            status=404,
        )
    return job


def _wire(asked: Request, name: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """The job as azure-ai-ml would send it: so it is judged, run and shown there."""

    def rows(file: Body) -> dict[str, str]:
        return {"jobInputType": "uri_file", "uri": files.uri(file["id"])}

    return {
        "jobType": "FineTuning",
        "displayName": asked.suffix or name,
        "tags": dict(asked.metadata or {}),
        "fineTuningDetails": {
            "taskType": "ChatCompletion",
            "modelProvider": "Custom",
            "model": {"jobInputType": "mlflow_model", "uri": asked.entry.asset_id()},
            "trainingData": rows(asked.training),
            "validationData": rows(asked.validation) if asked.validation else None,
            "hyperParameters": knobs.in_our_words(numbers, seed=asked.seed),
        },
        "outputs": {
            "registered_model": {"jobOutputType": "mlflow_model", "assetName": f"{name}-model"}
        },
    }


def _remembered(asked: Request, short: str, numbers: dict[str, Any]) -> dict[str, Any]:
    base = asked.model.lower()
    return {
        "model": asked.model,
        "tuned": f"ft:{base}:{_OWNER}:{asked.suffix}:{short[:12]}",
        "training_file": asked.training["id"],
        "validation_file": asked.validation["id"] if asked.validation else None,
        "rows": asked.training["rows"],
        "asked": asked.hyperparameters,
        "numbers": numbers,
        "seed": asked.seed,
        "suffix": asked.suffix,
        "metadata": asked.metadata,
        "training_type": asked.training_type,
        "result_files": [],
        "trained_tokens": None,
        "checkpoints": [],
        "noted": [],
    }


def _rows(twin: Twin, number: str, param: str) -> Body:
    file = twin.store.get(files.KIND, number)
    if file is None or files.is_over(twin, file):
        raise invalid(
            f"invalid {param}: {number[:100]}", param=param, code="invalid_file_id", status=400
        )
    if file["purpose"] != files.TUNE:
        raise invalid(
            f"{param} {number} has the purpose {file['purpose']}, not {files.TUNE}.",
            param=param,
            code="invalid_file_purpose",
        )
    if file["status"] != "processed":
        raise invalid(
            f"{param} {number} cannot be trained on: {file['status_details']}",
            param=param,
            code=f"invalid_{param}",
        )
    return file


def _hyperparameters(given: dict[str, Any]) -> dict[str, Any]:
    """Those of the method, or the deprecated ones beside it."""
    method = given.get("method")
    if method is None:
        return knobs.checked(given.get("hyperparameters"), where="hyperparameters")
    kind = method.get("type") if isinstance(method, dict) else None
    if kind not in _METHODS:
        raise invalid(f"method.type must be one of {', '.join(_METHODS)}.", param="method.type")
    if kind != "supervised":
        raise invalid(
            f"The method {kind} is not supported for this model; supervised is.",
            param="method.type",
            code="unsupported_method",
        )
    if given.get("hyperparameters"):
        raise invalid(
            "hyperparameters stand in method.supervised, or beside it, not in both.",
            param="hyperparameters",
            code="mutually_exclusive_parameters",
        )
    inner = method.get("supervised") or {}
    if not isinstance(inner, dict):
        raise invalid(
            "method.supervised must be an object.", param="method.supervised", code="invalid_type"
        )
    return knobs.checked(inner.get("hyperparameters"), where="method.supervised.hyperparameters")


def _seed(twin: Twin, given: Any) -> int:
    if given is None:
        return int(twin.dice.chance() * _MAX_SEED)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= _MAX_SEED:
        raise invalid(f"seed must be a whole number from 0 to {_MAX_SEED}.", param="seed")
    return given


def _suffix(given: Any, most: int) -> str:
    if given is None or given == "":
        return ""
    if not isinstance(given, str) or not _SUFFIX_WORD.fullmatch(given):
        raise invalid("suffix is made of letters, digits, '-', '_' and '.'.", param="suffix")
    if len(given) > most:
        raise invalid(
            f"suffix has {len(given)} characters; at most {most} are allowed.",
            param="suffix",
            code="string_above_max_length",
        )
    return given


def _refuse_integrations(given: Any) -> None:
    if given in (None, []):
        return
    raise invalid(
        "integrations are not available to this resource.",
        param="integrations",
        code="unsupported_integration",
    )


def _training_type(given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or given.lower() not in _TRAINING_TYPES:
        raise invalid(
            "trainingType must be Standard, GlobalStandard or Developer.", param="trainingType"
        )
    return given
