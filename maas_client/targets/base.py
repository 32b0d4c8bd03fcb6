"""What a place that runs jobs can do: the few verbs that every target shares."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from maas_client.errors import TargetError
from maas_client.jobs import Checkpoint, Endpoint, Event, Job, JobStatus, StoredFile, Transfer
from maas_client.plan import Plan
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits
from maas_client.spec.rundir import RunDir

_LONGEST_NAME = 64
"""Characters of a deployment's name on Azure."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `maas targets check` looked at."""

    name: str
    """What was looked at, such as `login`."""
    ok: bool
    detail: str
    """What was found, in clear words."""
    next_step: str = ""
    """What to do about it."""


class Target(Protocol):
    """Where a job runs. Errors are `TargetError`s, or `RunnerError`s for the local runner."""

    name: str

    @property
    def identity(self) -> str:
        """What stays the same where the target is called something else: two are the same place."""

    def limits(self, job: FineTuningJob) -> Limits:
        """What this target accepts for the job's model. Asks no network where it can."""

    def submit(self, plan: Plan) -> Job:
        """Start the job. The plan's job has a name; submitting the same plan twice is one job."""

    def get(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            NotFoundError: there is no such job.
        """

    def list(self, *, limit: int = 50) -> list[Job]:
        """The newest jobs first."""

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """The events so far with a number above `after`, in order; ends though the job goes on."""

    def cancel(self, job_id: str) -> None:
        """Ask the job to stop. It has stopped when `get` says so."""

    def download(self, job_id: str, dest: Path) -> RunDir:
        """Bring what an ended job left, in the shape of a run directory."""

    def check(self) -> Sequence[Finding]:
        """Whether the target can be used, and what is missing."""

    def close(self) -> None:
        """Let go of connections and child processes."""


@runtime_checkable
class KeyedTarget(Protocol):
    """A target that makes up the ids of its jobs itself: a submission is known by its key only."""

    def find(self, key: str) -> Job | None:
        """The job that was submitted with the plan of this key, if there is one."""


@runtime_checkable
class ManifestTarget(Protocol):
    """A target whose jobs are files that could be applied by hand."""

    def manifest(self, plan: Plan, *, server: bool) -> str:
        """What `submit` would apply, as YAML; with `server`, after asking what the target says to it."""


@runtime_checkable
class HostingTarget(Protocol):
    """A target that also serves what it trained."""

    def deploy(self, model: str, *, endpoint: str) -> Endpoint:
        """Serve a registered model (`name` or `name:version`); returns when it is online."""

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint."""

    def endpoint(self, name: str) -> Endpoint:
        """One endpoint."""

    def keys(self, name: str) -> tuple[str, str]:
        """The endpoint's primary and secondary key. Secrets: never logged."""

    def undeploy(self, name: str) -> None:
        """Delete the endpoint; returns when it is gone."""


@runtime_checkable
class PausableTarget(Protocol):
    """A target whose jobs can wait, and go on where they were."""

    def pause(self, job_id: str) -> Job:
        """Ask the job to wait. It is `paused` when `get` says so."""

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""


@runtime_checkable
class CheckpointTarget(Protocol):
    """A target that keeps the model of several steps."""

    def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        """Those that are kept, the oldest first."""


@runtime_checkable
class FileTarget(Protocol):
    """A target to which rows are uploaded."""

    on_transfer: Callable[[Transfer], None]
    """Told how each upload comes along, a few times a second; from other threads, one at a time."""

    def files(self, *, limit: int = 50) -> Sequence[StoredFile]:
        """The newest files first."""

    def upload_file(self, file: Path) -> StoredFile:
        """Upload rows, or find that they are there already. Goes on where an earlier try stopped."""

    def delete_file(self, file_id: str) -> None:
        """Delete a file.

        Raises:
            NotFoundError: there is none with that id.
        """


def known_status(words: Mapping[str, JobStatus], word: str) -> JobStatus:
    """Our word for a service's, by its table.

    Raises:
        TargetError: the service says a word that we do not know; it never becomes "running".
    """
    try:
        return words[word]
    except KeyError:
        raise TargetError(
            f"the service reports the job status {word!r}, which is not known here",
            hint="A newer version of maas-finetune may know it.",
        ) from None


def endpoint_name(model: str) -> str:
    """What a model's endpoint is called where nobody says.

    On OpenAI's wire the name has what tells it from another job's model, and from a checkpoint of its own.
    """
    if not model.startswith("ft:"):
        called, rest = model.partition(":")[0], ""
    else:
        base, _, suffix, *last = (model.removeprefix("ft:").split(":") + [""] * 3)[:5]
        called, rest = suffix or base, "".join(f"-{part}" for part in last if part)
    name = called[: max(1, _LONGEST_NAME - len(rest))] + rest
    return re.sub(r"[^a-zA-Z0-9-]", "-", name)
