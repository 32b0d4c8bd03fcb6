"""The service's words in ours: statuses, jobs, endpoints and errors. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Literal

from maas_client.errors import (
    AuthError,
    ConflictError,
    NotFoundError,
    SettingsError,
    TargetError,
    UnreachableError,
)
from maas_client.jobs import Endpoint, Job, JobStatus
from maas_client.targets.base import known_status

Raw = Mapping[str, Any]

INSTALL = 'pip install "maas-finetune[azure]" -c constraints.txt'
ROLE = "AzureML Data Scientist (or Azure AI Developer)"

_STATUS: Mapping[str, JobStatus] = {
    "NotStarted": JobStatus.QUEUED,
    "Queued": JobStatus.QUEUED,
    "Starting": JobStatus.QUEUED,
    "Provisioning": JobStatus.QUEUED,
    "Preparing": JobStatus.QUEUED,
    "Scheduled": JobStatus.QUEUED,
    "Running": JobStatus.RUNNING,
    "Finalizing": JobStatus.RUNNING,
    "CancelRequested": JobStatus.RUNNING,
    "NotResponding": JobStatus.RUNNING,
    "Paused": JobStatus.PAUSED,
    "Completed": JobStatus.SUCCEEDED,
    "Failed": JobStatus.FAILED,
    "Canceled": JobStatus.CANCELLED,
}

EndpointState = Literal["creating", "online", "deleting", "suspended", "failed", "unknown"]
_ENDPOINT: Mapping[str, EndpointState] = {
    "creating": "creating",
    "updating": "creating",
    "succeeded": "online",
    "deleting": "deleting",
    "failed": "failed",
    "canceled": "failed",
}
"""The provisioning state; azure-ai-ml does not hand on the endpoint's own state."""

SIMULATED = "mockSimulated"
BASE = "mockTrainedOn"
"""Job properties with which the mock owns up to what it really ran."""


def job_status(word: str) -> JobStatus:
    """Our word for the service's.

    Raises:
        TargetError: the service says a word that we do not know.
    """
    return known_status(_STATUS, word)


def job(raw: Raw, *, target: str) -> Job:
    """The job that the worker reports."""
    properties: Raw = raw["properties"]
    status = job_status(raw["status"])
    model = None
    if status is JobStatus.SUCCEEDED and raw["output_name"]:
        model = f"{raw['output_name']}:{raw['output_version'] or 1}"
    return Job(
        id=raw["name"],
        status=status,
        model=raw["model"],
        target=target,
        display_name=raw["display_name"] or "",
        created_at=seconds(raw["created_at"]),
        ended_at=seconds(properties.get("EndTimeUtc")) if status.is_terminal else None,
        error=reason(raw["error"]) if raw["error"] else None,
        output_model=model,
        url=raw["url"],
        simulated=str(properties.get(SIMULATED, "")).lower() == "true",
        base=properties.get(BASE) or "",
    )


def endpoint(raw: Raw) -> Endpoint:
    """The serverless endpoint that the worker reports."""
    return Endpoint(
        name=raw["name"],
        state=_ENDPOINT.get(raw["state"], "unknown"),
        model=model_words(raw["model_id"]),
        scoring_uri=(raw["scoring_uri"] or "").rstrip("/"),
        created_at=seconds(raw["created_at"]),
        region=raw["region"],
    )


def model_words(asset_id: str | None) -> str:
    """`name:version` out of an asset id; a registry model may have no version."""
    found = re.search(r"/models/([^/]+)(?:/versions/([^/]+))?", asset_id or "")
    if found is None:
        return asset_id or ""
    return f"{found[1]}:{found[2]}" if found[2] else found[1]


def seconds(text: str | None) -> float | None:
    """Seconds since 1970 of the service's several ways to write a time; a bare time is UTC."""
    if not text:
        return None
    # Python 3.11 reads at most 6 digits of a second; the service writes 7.
    text = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def reason(error: Any) -> str:
    """Why a job failed, out of the run history's error."""
    if not isinstance(error, dict):
        return redact(str(error).strip())
    inner = error.get("error", error)
    if not isinstance(inner, dict):
        return redact(str(inner))
    code, message = inner.get("code"), str(inner.get("message") or "").strip()
    cause = (inner.get("innerError") or inner.get("inner_error") or {}).get("code")
    words = message or cause or code or "the service gave no reason"
    named = cause or code
    return redact(f"{named}: {words}" if named and named not in words else words)


_KINDS: Mapping[int, type[TargetError]] = {
    401: AuthError,
    403: AuthError,
    404: NotFoundError,
    409: ConflictError,
}

_SECRETS = (
    re.compile(r"(?i)(\b(?:sig|signature|sas_?token|api-key|secret|password)=)[^&\s'\"]+"),
    re.compile(r"(?i)(bearer )\S+"),
    re.compile(r"()eyJ[\w-]+\.[\w-]+\.[\w-]*"),
    re.compile(r"(?i)((?:account|shared)key=)[^;\s'\"]+"),
)
_LONGEST = 4000
"""Characters of a message; a proxy may answer with a whole page."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def redact(text: str) -> str:
    """The text without tokens, signatures and keys."""
    for secret in _SECRETS:
        text = secret.sub(r"\1<redacted>", text)
    return text


def error(raw: Raw, *, name: str, is_mock: bool = False) -> TargetError | SettingsError:
    """The error that the worker reports, in our tree.

    Args:
        raw: type, message, status, code, inner and request_id.
        name: the target's name.
        is_mock: whether the target is a mock.
    """
    message = redact(_COLOUR.sub("", raw["message"])).strip()[:_LONGEST] or raw["type"]
    match raw["type"]:
        case "missing":
            return SettingsError(
                f"target {name} needs azure-ai-ml, which cannot be imported: {message}",
                hint=INSTALL,
            )
        case "unreachable":
            step = "`maas mock serve` starts it." if is_mock else "Is the network up?"
            return UnreachableError(
                f"target {name} does not answer: {message}",
                hint=f"{step} `maas targets check {name}` looks closer.",
            )
        case "login":
            step = "`maas mock stop`, then `maas mock serve`" if is_mock else "`az login`"
            return AuthError(
                f"not logged in to target {name}: {message}", hint=f"{step}, then try again."
            )
    status = raw.get("status")
    kind = _KINDS.get(status or 0, TargetError)
    code = ".".join(part for part in (raw.get("code"), raw.get("inner")) if part)
    return kind(
        message,
        hint=_hint(status, raw, name),
        status=status,
        code=code,
        request_id=raw.get("request_id") or "",
    )


def _hint(status: int | None, raw: Raw, name: str) -> str:
    match status:
        case 401:
            return "The token was refused: `az login`, with the tenant of the workspace."
        case 403:
            return f"Your account needs the role {ROLE} on the workspace; its owner grants it."
        case 404:
            return f"`maas jobs list --target {name}` and `maas endpoints list` show what there is."
        case 409:
            return "The name is taken by something else: choose another."
        case 429:
            return "Too many calls or no quota left: wait, or ask for quota in the portal."
    if "NotSupportedByMaaS" in (raw.get("inner") or ""):
        return f"`maas targets check {name}` names the regions that can tune it."
    return ""
