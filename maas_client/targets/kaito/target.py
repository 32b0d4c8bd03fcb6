"""A Kubernetes cluster with Kaito as a target: a job is a Workspace, followed through conditions and pods."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maas_client.errors import (
    AuthError,
    ConflictError,
    NotFoundError,
    SettingsError,
    TargetError,
)
from maas_client.jobs import Event, Job, JobStatus
from maas_client.plan import Plan
from maas_client.settings import KaitoSettings
from maas_client.spec.hyperparameters import KNOBS
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits
from maas_client.spec.loading import dump_job
from maas_client.spec.rundir import RunDir
from maas_client.targets.base import Finding
from maas_client.targets.kaito import findings, parcel, registry, sayable, schema, words, workspace
from maas_client.targets.kaito.cluster import Cluster, Object
from maas_client.targets.staging import staged

_MADE = f"{workspace.MANAGER}/made"
"""On the record: the Workspace's uid, once it was there."""
_ENDED = f"{workspace.MANAGER}/ended"
"""On the record: the status that it ended with."""

Jobs = list[Job]
Objects = list[Object]


class KaitoTarget:
    """Runs jobs on a cluster's GPU nodes, through Kaito's Workspaces.

    Beside each Workspace lies a record, a ConfigMap with the job file and the plan. Making it claims the
    job's name; it stays when the Workspace is deleted, which is how a job is cancelled and how its node
    is given back.

    Args:
        settings: the cluster, and where rows and adapter are.
        cluster: the connection; tests bring their own.
    """

    def __init__(self, settings: KaitoSettings, *, cluster: Cluster | None = None) -> None:
        self.name = settings.name
        self._settings = settings
        self._cluster = cluster or Cluster(settings)
        self._logs: dict[tuple[str, str], str] = {}

    @property
    def identity(self) -> str:
        """The cluster's address: a context may be called otherwise, and two may be called the same."""
        try:
            place = self._cluster.address()
        except SettingsError:  # no kubeconfig: manifests can be printed all the same
            place = self._settings.context or "no cluster"
        return f"kaito {place} {self._settings.namespace}"

    def limits(self, job: FineTuningJob) -> Limits:
        return sayable.limits(job, self._settings)

    def manifest(self, plan: Plan, *, server: bool) -> str:
        """What `submit` would apply, as YAML. Nothing is applied.

        Args:
            plan: with its name and key.
            server: whether the cluster is asked what it would say (`--dry-run=server`).

        Raises:
            PlanError: Kaito would refuse it.
            TargetError: the cluster would.
        """
        made = workspace.manifests(plan, self._settings, structure=self._structure(ask=server))
        if not server:
            return made.to_yaml()
        for config_map in made.config_maps:
            self._cluster.apply_config_map(config_map, dry_run=True)
        said = "the cluster takes it"
        try:
            self._cluster.apply_workspace(made.workspace, dry_run=True)
        except TargetError as error:
            # Kaito's webhook looks for the ConfigMap, which a dry run does not make.
            if "ConfigMap" not in error.message or "not found" not in error.message:
                raise
            said = "the cluster takes it, but for the ConfigMap that a dry run does not make"
        return f"# {said}\n{made.to_yaml()}"

    def submit(self, plan: Plan) -> Job:
        """Apply the job's objects: its record first, which claims the name, and its Workspace last.

        Raises:
            ConflictError: the name belongs to a job with another definition.
        """
        made = workspace.manifests(plan, self._settings, structure=self._structure(ask=True))
        if self._was_made(self._claim(plan)):
            return self.get(plan.job.name or "")
        try:
            for config_map in made.config_maps:
                self._cluster.apply_config_map(config_map)
            there = self._cluster.apply_workspace(made.workspace)
        except TargetError as error:
            if not error.may_pass:  # refused: the name is free again
                self._cluster.delete_config_maps(plan.job.name or "")
            raise
        assert there is not None  # noqa: S101 - only a dry run returns nothing
        for config_map in made.config_maps:  # they go with the Workspace
            self._cluster.apply_config_map(workspace.owned(config_map, there))
        self._note(there["metadata"]["name"], {_MADE: there["metadata"]["uid"]})
        return self._job(there)

    def get(self, job_id: str) -> Job:
        try:
            return self._job(self._cluster.workspace(job_id))
        except NotFoundError:
            record = self._record(job_id)
            if record is None or not self._was_made(record):
                raise NotFoundError(
                    f"there is no Workspace {job_id} in {self._settings.namespace}",
                    hint=f"`maas jobs list --target {self.name}` shows those there are.",
                ) from None
            return self._gone(record)

    def list(self, *, limit: int = 50) -> Jobs:
        found = [entry for entry in self._cluster.workspaces() if entry.get("tuning")]
        names = {entry["metadata"]["name"] for entry in found}
        jobs = [self._job(entry) for entry in found]
        for record in self._cluster.config_maps():
            name, suffix = record["metadata"]["name"], workspace.record_name("")
            if name.endswith(suffix) and name.removesuffix(suffix) not in names:
                jobs += [self._gone(record)] if self._was_made(record) else []
        return sorted(jobs, key=lambda job: job.created_at or 0.0, reverse=True)[:limit]

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        # Status first, log second: what a pod wrote last is there before its end is.
        found = self.get(job_id)
        try:
            there = self._cluster.workspace(job_id)
        except NotFoundError:
            there = {"metadata": {"name": job_id}}
        lines = self._log(job_id, whole=found.status.is_terminal)
        return iter(words.events(there, found, lines, self._every(job_id))[after:])

    def cancel(self, job_id: str) -> None:
        """Delete the Workspace, and with it the pods and the node that Kaito brought. The record stays.

        A job that is over already stays as it is.
        """
        if self.get(job_id).status.is_terminal:
            return
        self._note(job_id, {_ENDED: str(JobStatus.CANCELLED)})
        with contextlib.suppress(NotFoundError):
            self._cluster.delete_workspace(job_id)

    def download(self, job_id: str, dest: Path) -> RunDir:
        """Bring the job's record and log, and the adapter out of its image.

        Raises:
            TargetError: the job is not over, or `dest` holds something else; or the adapter is in a
                claim, which only a pod can read: then the records are in `dest` all the same.
        """
        job = self.get(job_id)
        if not job.status.is_terminal:
            raise TargetError(
                f"job {job_id} is {job.status}; only an ended job can be downloaded",
                hint=f"`maas jobs follow {job_id} --target {self.name}` waits for it.",
            )
        origin = {"job": job_id, "cluster": self.identity}
        record = self._record(job_id) or {}
        image, secret = self._output(job_id, job)
        with staged(dest, origin) as (folder, run):
            if job.status is JobStatus.SUCCEEDED and image:
                registry.fetch_adapter(image, folder, ask_login=self._logins(secret))
                (folder / "adapter").replace(run.adapter)
            parcel.fill(run, job, record, self.events(job_id), origin)
        if job.status is JobStatus.SUCCEEDED and not image:
            raise TargetError(
                f"the records are in {dest}; the adapter is in the claim of {job_id}, which only a pod "
                "can read",
                hint="docs/kaito.md has the three kubectl commands that copy it.",
            )
        return RunDir(dest)

    def check(self) -> Sequence[Finding]:
        return findings.look(self._cluster, self._settings)

    def close(self) -> None:
        self._cluster.close()

    @staticmethod
    def _was_made(record: Object) -> bool:
        """Whether the record's job has had a Workspace. Deleted since, it is not made again."""
        return bool(_notes(record).keys() & {_MADE, _ENDED})

    def _claim(self, plan: Plan) -> Object:
        """The job's record: made, or found where an earlier try of the same submission made it."""
        name = plan.job.name or ""
        text = json.dumps(plan.to_json(), ensure_ascii=False)
        mine = workspace.record(plan, self._settings, dump_job(parcel.told(plan)), text)
        try:
            self._cluster.create_config_map(mine)
        except ConflictError:
            there = self._record(name)
            if there is not None and _notes(there).get(workspace.KEY) == plan.key:
                return there
            raise ConflictError(
                f"the name {name} belongs to another job: ConfigMap {workspace.record_name(name)}",
                hint="Give the job another name (--name), or take the name out of the job file.",
            ) from None
        try:
            there = self._cluster.workspace(name)
        except NotFoundError:
            return mine
        if _notes(there).get(workspace.KEY) != plan.key:
            raise ConflictError(
                f"there is a Workspace {name} that this program did not make",
                hint="Give the job another name (--name).",
            )
        return mine

    def _structure(self, *, ask: bool) -> schema.Schema:
        """The cluster's own schema of a Workspace; what we know of it where it cannot be read."""
        if not ask:
            return schema.WORKSPACE
        try:
            found = self._cluster.definition()
        except NotFoundError as error:
            raise TargetError(
                f"the cluster has no Kaito: {error.message}",
                hint="docs/kaito.md says how it is installed.",
                status=404,
            ) from error
        return (schema.of_crd(found) if found else None) or schema.WORKSPACE

    def _job(self, there: Object) -> Job:
        name = there["metadata"]["name"]
        word = words.status(there)
        pods: Objects = []
        if word in (JobStatus.RUNNING, JobStatus.FAILED):
            pods = self._pods(name)
            if word is JobStatus.FAILED and self._is_tried_again(name):
                word = JobStatus.RUNNING
            elif word is JobStatus.RUNNING and words.work_is_done(pods):
                word = JobStatus.SUCCEEDED
        error = words.reason(there, pods) if word is JobStatus.FAILED else None
        if word.is_terminal:
            with contextlib.suppress(AuthError):  # who may only look writes nothing down
                self._note(name, {_ENDED: str(word)})
        return words.job(there, word, target=self.name, error=error)

    def _gone(self, record: Object) -> Job:
        """A job whose Workspace is deleted: it ended as its record says, or was stopped by hand."""
        name = record["metadata"]["name"].removesuffix(workspace.record_name(""))
        word = JobStatus(_notes(record).get(_ENDED, JobStatus.CANCELLED))
        there = {**record, "metadata": {**record["metadata"], "name": name}}
        error = "its Workspace is deleted" if word is JobStatus.FAILED else None
        return words.job(there, word, target=self.name, error=error)

    def _is_tried_again(self, name: str) -> bool:
        """Kaito calls a job failed at its first failed pod; Kubernetes may start another."""
        try:
            told = self._cluster.tuning_job(name).get("status") or {}
        except (NotFoundError, AuthError):
            return False
        return bool(told.get("active"))

    def _pods(self, name: str) -> Objects:
        try:
            return self._cluster.pods(name)
        except AuthError:
            return []

    def _log(self, name: str, *, whole: bool) -> Iterator[tuple[float, str]]:
        """The lines of the container that trains, of every pod in order; those of a pod that is gone too."""
        for pod in self._pods(name):
            pod_name = pod["metadata"]["name"]
            try:
                said = self._cluster.log(pod_name, name)
            except TargetError as error:
                if error.may_pass:
                    raise
                continue  # a container that waits to start has no log
            self._logs[name, pod_name] = said
        kept = [text for (job, _), text in self._logs.items() if job == name]
        for place, text in enumerate(kept, 1):
            yield from words.log_lines(text, whole=whole or place < len(kept))

    def _every(self, name: str) -> int:
        """Steps between two lines of losses, as the plan has it."""
        default = int(KNOBS["logging_steps"].default or 1)
        try:
            plan = json.loads((self._record(name) or {}).get("data", {})["plan.json"])
            return int(plan["hyperparameters"]["logging_steps"]["value"])
        except (AuthError, KeyError, TypeError, ValueError):
            return default

    def _record(self, name: str) -> Object | None:
        try:
            return self._cluster.config_map(workspace.record_name(name))
        except NotFoundError:
            return None

    def _note(self, name: str, notes: Mapping[str, str]) -> None:
        """On the record, where there is one: a Workspace of somebody else's has none."""
        record = self._record(name)
        if record is not None and not notes.items() <= _notes(record).items():
            self._cluster.annotate_config_map(record["metadata"]["name"], notes)

    def _output(self, job_id: str, job: Job) -> tuple[str | None, str | None]:
        with contextlib.suppress(NotFoundError):
            return workspace.output(self._cluster.workspace(job_id))
        if self._settings.output_image:  # the Workspace is gone; its name is the image's tag
            return f"{self._settings.output_image}:{job_id}", self._settings.output_secret
        return job.output_model, None

    def _logins(self, secret: str | None) -> Callable[[str], registry.Login | None]:
        """The secret that Kaito pushes with, else what Docker keeps on this machine."""

        def ask(host: str) -> registry.Login | None:
            if secret:
                with contextlib.suppress(NotFoundError, AuthError):
                    kept = self._cluster.secret(secret).get(".dockerconfigjson", b"{}")
                    if (found := registry.login(kept, host)) is not None:
                        return found
            file = Path.home() / ".docker" / "config.json"
            return registry.login(file.read_bytes(), host) if file.exists() else None

        return ask


def _notes(of: Mapping[str, Any]) -> dict[str, str]:
    return of["metadata"].get("annotations") or {}
