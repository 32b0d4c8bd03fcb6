"""A service with OpenAI's fine-tuning wire as a target: Foundry, Azure OpenAI, OpenAI, or the mock."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from maas_client.errors import AmbiguousError, MaasError, NotFoundError, TargetError
from maas_client.jobs import Checkpoint, Endpoint, Event, Job, StoredFile, Transfer
from maas_client.plan import DataPlan, Plan
from maas_client.settings import FoundrySettings
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits
from maas_client.spec.rundir import RunDir
from maas_client.targets.base import Finding
from maas_client.targets.foundry import parcel, sayable, words
from maas_client.targets.foundry.deployments import Deployments
from maas_client.targets.foundry.pages import pages
from maas_client.targets.foundry.uploads import Uploads
from maas_client.targets.staging import staged
from maas_client.transport import Transport

_JOBS = "/fine_tuning/jobs"
_FINDABLE = 1000
"""Jobs that are looked through for one key, where the service cannot look itself."""

_LATE = 50
"""Events that are read again, as one of before may turn up after them."""

Jobs = list[Job]
Endpoints = list[Endpoint]


class FoundryTarget:
    """Runs jobs on a service of OpenAI's wire, and asks what they made.

    Args:
        settings: where it is, and which environment variable has the key.
        line: to the service; tests bring their own. Made when first needed.
        arm: to ARM; the same.
    """

    def __init__(
        self,
        settings: FoundrySettings,
        *,
        line: Transport | None = None,
        arm: Transport | None = None,
    ) -> None:
        self.name = settings.name
        self.identity = settings.base_url
        self.on_transfer: Callable[[Transfer], None] = lambda _: None
        self.bills_hosting = settings.has_arm
        self._settings = settings
        self._given = line
        self._deployments = Deployments(settings, line=arm) if settings.has_arm else None
        self._events: dict[str, list[dict[str, Any]]] = {}

    @property
    def _line(self) -> Transport:
        if self._given is None:
            self._given = Transport(
                self._settings.base_url,
                headers=self._settings.key_header(),
                ca=self._settings.ca,
                budget=300.0,
            )
        return self._given

    def limits(self, job: FineTuningJob) -> Limits:
        today = dt.datetime.now(dt.UTC).date()
        return sayable.limits(job, target=self.name, azure=self._settings.is_azure, today=today)

    def submit(self, plan: Plan) -> Job:
        """Upload the rows that are not there yet, and start the job.

        Raises:
            AmbiguousError: the answer was lost; the job may have started.
        """
        training = self._upload(plan.training)
        validation = self._upload(plan.validation) if plan.validation else None
        body = words.job_body(plan, training.id, validation.id if validation else None)
        try:
            raw = self._line.post(_JOBS, body, again="never")
        except AmbiguousError as error:
            name = plan.job.name or ""
            error.hint = (
                f"The job may have started: `maas jobs list --target {self.name}` shows it, under "
                f"the name {name}. Submit the same job again: it looks for this one first."
            )
            raise
        try:
            job = words.job(raw, target=self.name)
        except (TargetError, KeyError, TypeError, AttributeError) as error:
            raise AmbiguousError(
                f"{self.name} took the job, and its answer cannot be read: {error}",
                hint=f"`maas jobs list --target {self.name}` shows whether it is there.",
            ) from error
        parcel.remember(self._settings.base_url, job.id, plan)
        return job

    def find(self, key: str) -> Job | None:
        """The job that was submitted with that key, if there is one."""
        asked = pages(self._line, _JOBS, {f"metadata[{words.KEY}]": key})
        for raw in islice(asked, _FINDABLE):  # a service may not know the question, and show all
            if (raw.get("metadata") or {}).get(words.KEY) == key:
                return words.job(raw, target=self.name)
        return None

    def get(self, job_id: str) -> Job:
        return words.job(self._raw(job_id), target=self.name)

    def list(self, *, limit: int = 50) -> Jobs:
        found = islice(pages(self._line, _JOBS, page=min(limit, 100)), limit)
        return [words.job(raw, target=self.name) for raw in found]

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        # Status first, events second: the last events are there before the last status.
        job = self.get(job_id)
        found = [
            Event(number, raw.get("created_at") or 0.0, *words.event(raw))
            for number, raw in enumerate(self._news(job_id), 1)
        ]
        if job.status.is_terminal:
            message = f"{job.status}: {job.error}" if job.error else str(job.status)
            at = job.ended_at or (found[-1].at if found else 0.0)
            data = {"status": str(job.status)}
            found.append(Event(len(found) + 1, at, "status", message, data))
        return iter(found[after:])

    def cancel(self, job_id: str) -> None:
        """A job that is over already stays as it is."""
        if not self.get(job_id).status.is_terminal:
            self._ask(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        return self._ask(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        return self._ask(job_id, "resume")

    def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        found = pages(self._line, f"{_JOBS}/{job_id}/checkpoints")
        return sorted((words.checkpoint(raw) for raw in found), key=lambda entry: entry.step)

    def download(self, job_id: str, dest: Path) -> RunDir:
        """Bring the job's records and result files, and the adapter where it is one of them.

        Raises:
            TargetError: the job is not over, or `dest` holds something else.
        """
        raw = self._raw(job_id)
        job = words.job(raw, target=self.name)
        if not job.status.is_terminal:
            raise TargetError(
                f"job {job_id} is {job.status}; only an ended job can be downloaded",
                hint=f"`maas jobs follow {job_id} --target {self.name}` waits for it.",
            )
        origin = {"job": job_id, "endpoint": self._settings.base_url}
        with staged(dest, origin) as (folder, run):
            files = parcel.fetch(self._line, raw.get("result_files") or (), folder)
            parcel.unpack(
                run,
                files,
                raw,
                job,
                endpoint=self._settings.base_url,
                events=self.events(job_id),
                kept=self.checkpoints(job_id),
            )
            parcel.seal(run, job, origin)
        return RunDir(dest)

    def check(self) -> Sequence[Finding]:
        findings = []
        for name, look in (("key", self._check_key), ("service", self._check_service)):
            findings.append(_finding(name, look))
            if not findings[-1].ok:
                return findings
        if self._deployments is not None:
            findings.append(_finding("deployments", self._check_deployments))
        return findings

    def deploy(self, model: str, *, endpoint: str) -> Endpoint:
        """Serve a model through ARM; without ARM it answers by its own name already."""
        if self._deployments is not None:
            return self._deployments.deploy(model, endpoint)
        return self.endpoint(model)

    def endpoints(self) -> Endpoints:
        if self._deployments is not None:
            return self._deployments.list()
        found = self._line.get("/models").get("data") or ()
        return [self._model(raw) for raw in found if str(raw["id"]).startswith("ft:")]

    def endpoint(self, name: str) -> Endpoint:
        if self._deployments is not None:
            return self._deployments.get(name)
        return self._model(self._line.get(f"/models/{name}"))

    def keys(self, name: str) -> tuple[str, str]:
        """The resource's keys, which open each of its deployments; without ARM the one in use."""
        if self._deployments is not None:
            return self._deployments.keys()
        return self._settings.key(), ""

    def undeploy(self, name: str) -> None:
        if self._deployments is None:
            raise TargetError(
                f"nothing is deployed on {self.name}: a model answers by its name",
                hint="It costs nothing while nobody asks it.",
            )
        self._deployments.delete(name)

    def files(self, *, limit: int = 50) -> Sequence[StoredFile]:
        found = pages(self._line, "/files", page=min(limit, 100))
        return [words.stored_file(raw) for raw in islice(found, limit)]

    def upload_file(self, file: Path) -> StoredFile:
        return self._uploads().send(file, on_transfer=self.on_transfer)

    def delete_file(self, file_id: str) -> None:
        self._line.get(f"/files/{file_id}")  # a wrong id is an error, a second try is none
        with contextlib.suppress(NotFoundError):
            self._line.delete(f"/files/{file_id}")
        self._uploads().forget(file_id)

    def close(self) -> None:
        if self._given is not None:
            self._given.close()
        if self._deployments is not None:
            self._deployments.close()

    def _uploads(self) -> Uploads:
        return Uploads(self._line, self._settings.base_url)

    def _upload(self, data: DataPlan) -> StoredFile:
        digest = data.report.sha256 if data.report else None
        return self._uploads().send(Path(data.path), sha256=digest, on_transfer=self.on_transfer)

    def _raw(self, job_id: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._line.get(f"{_JOBS}/{job_id}")
        except NotFoundError as error:
            error.hint = error.hint or f"`maas jobs list --target {self.name}` lists them."
            raise
        return found

    def _ask(self, job_id: str, verb: str) -> Job:
        raw = self._line.post(f"{_JOBS}/{job_id}/{verb}", again="always")
        return words.job(raw, target=self.name)

    def _news(self, job_id: str) -> Sequence[dict[str, Any]]:
        """Every event so far, the oldest first; the service shows the newest first."""
        known = self._events.setdefault(job_id, [])
        seen = {raw["id"] for raw in known}
        news, old = [], 0
        for raw in pages(self._line, f"{_JOBS}/{job_id}/events"):
            if raw["id"] not in seen:
                news.append(raw)
            elif (old := old + 1) > _LATE:
                break
        known.extend(reversed(news))
        return known

    def _model(self, raw: dict[str, Any]) -> Endpoint:
        return words.model(raw, base_url=self._settings.base_url)

    def _check_key(self) -> str:
        self._settings.key()
        return "found in the environment" if self._settings.api_key is None else "the mock's"

    def _check_service(self) -> str:
        count = len(self._line.get("/models").get("data") or ())
        return f"{self._settings.base_url} answers, and has {count} models"

    def _check_deployments(self) -> str:
        return f"{len(self.endpoints())} on {self._settings.account}"


def _finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ok=True, detail=look())
    except MaasError as error:
        return Finding(name, ok=False, detail=error.message, next_step=error.hint)
