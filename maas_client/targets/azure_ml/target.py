"""A workspace of Azure ML, or the mock of one: only settings differ."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from maas_client.errors import ConflictError, NotFoundError, TargetError
from maas_client.jobs import Endpoint, Event, Job
from maas_client.plan import DataPlan, Plan
from maas_client.settings import AzureMLSettings
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits, hosted_limits
from maas_client.spec.loading import dump_job
from maas_client.spec.rundir import RunDir
from maas_client.targets.azure_ml import findings, machines, unpack, words
from maas_client.targets.azure_ml.child import Child
from maas_client.targets.azure_ml.log import EventLog
from maas_client.targets.base import Finding
from maas_client.targets.staging import staged

Endpoints = list[Endpoint]


class AzureMLTarget:
    """Runs jobs in an Azure ML workspace, and hosts what they made.

    All of azure-ai-ml's work is done in one child process, started at the first question: a mock
    and a real workspace can be used side by side in one Python process.

    Args:
        settings: the workspace, or the mock of one.
        child: who talks to the service; tests bring their own.
    """

    def __init__(self, settings: AzureMLSettings, *, child: Child | None = None) -> None:
        self.name = settings.name
        # A mock is known by its home, not by its port: it may come back on another one.
        self.identity = " ".join(
            (
                f"mock {settings.ca}" if settings.is_mock else "azure",
                settings.subscription_id,
                settings.resource_group,
                settings.workspace,
            )
        )
        self._settings = settings
        self._child = child or Child(settings)
        self._logs: dict[str, EventLog] = {}

    def limits(self, job: FineTuningJob) -> Limits:
        limits = hosted_limits(
            job.model,
            target=self.name,
            managed_compute=job.managed_compute,
            region=self._settings.region,
            today=dt.datetime.now(dt.UTC).date(),
            retirement_refuses=False,  # the service decides; we warn
        )
        return machines.with_machines(limits, job, self._child, self._settings)

    def submit(self, plan: Plan) -> Job:
        """Send the job; local rows are uploaded first.

        Raises:
            ConflictError: the name belongs to a job with another definition.
        """
        if plan.job.name is None:
            raise TargetError("the job has no name yet", hint="Submit it through flow.submit.")
        try:
            raw = self._child.ask("submit", job=dump_job(_absolute(plan)))
        except ConflictError as error:
            error.hint = (
                "Give the job another name (--name), or take the name out of the job file: "
                "then each submission gets its own."
            )
            raise
        return words.job(raw, target=self.name)

    def get(self, job_id: str) -> Job:
        return words.job(self._child.ask("get", name=job_id), target=self.name)

    def list(self, *, limit: int = 50) -> list[Job]:
        return [words.job(raw, target=self.name) for raw in self._child.ask("list", limit=limit)]

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        log = self._logs.setdefault(job_id, EventLog())
        news = self._child.ask("lines", name=job_id, skip=log.lines)
        job = words.job(news["job"], target=self.name)
        # Read after the end, all of it happened by the end; the log itself tells no times.
        at = job.ended_at or time.time()
        log.update(job.status, news["lines"], at=at, complete=news["complete"], error=job.error)
        return iter(log.events[after:])

    def cancel(self, job_id: str) -> None:
        """Returns when the job has stopped; a job that is over already stays as it is."""
        if not self.get(job_id).status.is_terminal:
            self._child.ask("cancel", name=job_id)

    def download(self, job_id: str, dest: Path) -> RunDir:
        """Bring the job's log, records and adapter.

        Raises:
            TargetError: the job is not over, or `dest` holds something else.
        """
        job = self.get(job_id)
        if not job.status.is_terminal:
            raise TargetError(
                f"job {job_id} is {job.status}; only an ended job can be downloaded",
                hint=f"`maas jobs follow {job_id} --target {self.name}` waits for it.",
            )
        origin = {
            "job": job_id,
            "subscription_id": self._settings.subscription_id,
            "resource_group": self._settings.resource_group,
            "workspace": self._settings.workspace,
        }
        with staged(dest, origin) as (parcel, run):
            raw = self._child.ask("download", name=job_id, folder=str(parcel))
            unpack.unpack(raw, run, words.job(raw["job"], target=self.name), origin)
        return RunDir(dest)

    def check(self) -> Sequence[Finding]:
        return findings.check(self._child, self._settings)

    def deploy(self, model: str, *, endpoint: str) -> Endpoint:
        """Serve a registered model; the newest version where none is named.

        Raises:
            ConflictError: the endpoint serves another model already.
            TargetError: the service could not bring it up.
        """
        try:
            before = self.endpoint(endpoint)
        except NotFoundError:
            before = None
        served = before.model if before is not None else model
        if served not in (model, f"{model}:{served.partition(':')[2]}"):
            raise ConflictError(
                f"endpoint {endpoint} already serves {served}",
                hint="Name another with --endpoint, or `maas undeploy` this one first.",
            )
        found = words.endpoint(self._child.ask("deploy", model=model, endpoint=endpoint))
        if found.state != "online":
            raise TargetError(
                f"endpoint {endpoint} is {found.state}, not online",
                hint=f"`maas endpoints show {endpoint}` looks again; `maas undeploy {endpoint}` "
                "ends the hourly bill.",
            )
        return found

    def endpoints(self) -> Endpoints:
        return [words.endpoint(raw) for raw in self._child.ask("endpoints")]

    def endpoint(self, name: str) -> Endpoint:
        return words.endpoint(self._child.ask("endpoint", name=name))

    def keys(self, name: str) -> tuple[str, str]:
        primary, secondary = self._child.ask("keys", name=name)
        return primary, secondary

    def undeploy(self, name: str) -> None:
        self._child.ask("undeploy", name=name)

    def archive(self, job: Job) -> None:
        """Put an ended job and the model it registered out of sight. Azure deletes neither."""
        self._child.ask("archive", name=job.id, model=job.output_model)

    def close(self) -> None:
        self._child.close()


def _absolute(plan: Plan) -> FineTuningJob:
    """The job with its local paths absolute, as the worker has no folder that they start from."""
    job = plan.job
    places: tuple[tuple[str, DataPlan | None], ...] = (
        ("training_data", plan.training),
        ("validation_data", plan.validation),
    )
    for key, data in places:
        given = getattr(job, key)
        if data is not None and given is not None and not given.is_remote:
            path = str(Path(data.path).absolute())
            job = job.model_copy(update={key: given.model_copy(update={"path": path})})
    return job
