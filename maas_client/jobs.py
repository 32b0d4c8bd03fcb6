"""A job as any target reports it. Data only: nothing here talks to anyone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal


class JobStatus(StrEnum):
    """Where a job stands. Each vendor's words are translated in that vendor's one file."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    """Stopped by its owner, and keeps its place: it goes on where a `PausableTarget` resumes it."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the status can no longer change."""
        return self in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}


@dataclass(frozen=True, slots=True)
class Job:
    """A snapshot of a job. Ask again for a newer one."""

    id: str
    status: JobStatus
    model: str
    """The base model, as the job file names it."""
    target: str
    """The target that runs the job, by its name in the settings."""
    display_name: str = ""
    created_at: float | None = None
    """Seconds since 1970, UTC."""
    ended_at: float | None = None
    """Seconds since 1970, UTC; None while the job is going on or where the target does not say."""
    error: str | None = None
    """Why the job failed, in the target's words."""
    output_model: str | None = None
    """The registered model, `name:version`, once there is one."""
    url: str | None = None
    """Where a person can look at the job."""
    simulated: bool = False
    """Whether a simulation ran, and nothing was trained."""
    base: str = ""
    """The weights that were really trained, where the target says so (a stand-in says it is one)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


EventKind = Literal["status", "log", "metric"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a job. Events are numbered from 1 without gaps."""

    seq: int
    at: float
    """Seconds since 1970, UTC."""
    kind: EventKind
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)
    """For a metric: `step`, `max_steps`, and whichever of `loss`, `eval_loss`, `learning_rate`,
    `grad_norm`, `epoch`, `tokens_per_second`, `seconds_left` there are. For a status: `status`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"data": dict(self.data)}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A deployed model that answers. A snapshot."""

    name: str
    state: Literal["creating", "online", "deleting", "suspended", "failed", "unknown"]
    model: str
    """The registered model it serves, `name:version`."""
    scoring_uri: str = ""
    """Without a trailing slash; `/v1/chat/completions` is appended to it."""
    created_at: float | None = None
    region: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that a target keeps for jobs. A snapshot."""

    id: str
    name: str
    bytes: int
    purpose: str
    """`fine-tune` for rows, `fine-tune-results` for what a job wrote."""
    status: str = ""
    """The target's own word."""
    created_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The model as it was at one step of a job."""

    id: str
    step: int
    model: str
    """What to deploy, or to ask, in place of the job's last model."""
    created_at: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Whichever of `loss`, `eval_loss`, `token_accuracy`, `eval_token_accuracy` there are."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"metrics": dict(self.metrics)}


@dataclass(frozen=True, slots=True)
class Transfer:
    """An upload, as far as it has come."""

    name: str
    sent: int
    """Bytes that are there, those of an earlier try included."""
    total: int
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    """None where it cannot be told yet."""
    note: str = ""
    """Why there is nothing to send, or that an earlier upload goes on."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
