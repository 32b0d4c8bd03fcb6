"""The journey, in order: load, plan, submit, follow, download, deploy, chat."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from maas_client import planning, submissions
from maas_client.errors import (
    NotFoundError,
    RunDirError,
    SpecError,
    TargetError,
)
from maas_client.evaluation import ended_run
from maas_client.handle import JobHandle
from maas_client.jobs import Endpoint, Event, Job, JobStatus
from maas_client.plan import (
    Plan,
    make_plan,
)
from maas_client.serving import Chat, EndpointLine, LocalLine
from maas_client.settings import (
    AzureMLSettings,
    FoundrySettings,
    KaitoSettings,
    LocalSettings,
    TargetSettings,
    find_target,
)
from maas_client.spec.job import NAME, FineTuningJob
from maas_client.spec.loading import load_job
from maas_client.spec.memory import read_size
from maas_client.spec.rundir import RunDir
from maas_client.spec.weights import find_weights
from maas_client.targets import runner
from maas_client.targets.base import (
    HostingTarget,
    KeyedTarget,
    ManifestTarget,
    Target,
    endpoint_name,
)
from maas_client.targets.local import LocalTarget

OnEvent = Callable[[Event], None]


def open_target(
    target: str | TargetSettings = "local",
    *,
    engine: str = "train",
    mlflow: str | None = None,
    tensorboard: str | Path | None = None,
) -> Target:
    """The target of that name in the settings.

    Args:
        target: a name from `maas targets list`, or settings made in code.
        engine: `train`, or `simulate` for a local run that trains nothing.
        mlflow: where a local run is logged while it goes on; `track` logs any other one afterwards.
        tensorboard: the folder that a local run writes TensorBoard files under.

    Raises:
        SettingsError: there is no such target.
    """
    settings = find_target(target) if isinstance(target, str) else target
    match settings:
        case LocalSettings():
            folder = settings.tensorboard if tensorboard is None else str(tensorboard)
            place = replace(settings, mlflow=mlflow or settings.mlflow, tensorboard=folder)
            return LocalTarget(place, engine=engine)
        case AzureMLSettings():
            from maas_client.targets.azure_ml import AzureMLTarget  # not everyone has it

            return AzureMLTarget(settings)
        case FoundrySettings():
            from maas_client.targets.foundry import FoundryTarget  # the same

            return FoundryTarget(settings)
        case KaitoSettings():
            from maas_client.targets.kaito import KaitoTarget  # the same

            return KaitoTarget(settings)


def track(
    run: RunDir, *, mlflow: str | None = None, tensorboard: str | Path | None = None
) -> list[str]:
    """Log a run that has ended, wherever it ran, to MLflow or TensorBoard; where it can be seen.

    Args:
        run: its directory, as `collect` returns it.
        mlflow: a tracking server, or `sqlite:///file.db`; without it MLFLOW_TRACKING_URI.
        tensorboard: the folder that gets a folder with event files.

    Raises:
        RunnerError: the place cannot be reached, nothing was named, or what it needs is not installed.
    """
    runner.require("yaml", extra="train")
    words = runner.tracking(mlflow, tensorboard)
    return list(runner.ask("track", str(run.path), *words)["tracked"])


def plan_job(
    job_file: str | Path,
    target: Target,
    *,
    base: str | None = None,
    name: str | None = None,
    max_memory: str | None = None,
    validation_split: float | None = None,
) -> Plan:
    """Load a job file, check its rows, count its tokens, and ask the target's limits.

    Args:
        job_file: Azure ML's fine-tuning YAML.
        target: where the job will run.
        base: the weights a local run starts from, or whose tokenizer counts: a folder, a hub id,
            `stand-in`, `tiny` or `tiny-phi-3-small`. Without it, the model's own from the Hugging Face cache.
        name: the job's name, instead of the file's.
        max_memory: what a local run may take: `6GB`, `512MiB`.
        validation_split: the share of the training rows to validate with, where the job names no
            validation_data; no question is in both parts.

    Raises:
        SpecError: the file, or `max_memory`, is wrong.
        PlanError: the target would refuse the job.
        BaseModelError: a local run has no weights to start from.
    """
    file = Path(job_file)
    job = load_job(file)
    if name is not None:
        if not NAME.match(name):
            raise SpecError(
                f"{name!r} cannot be a job's name",
                hint="A letter or digit, then at most 254 letters, digits, '-', '_' or '.'.",
            )
        job = job.model_copy(update={"name": name})
    limits = target.limits(job)
    rows = planning.gather(job, file.parent, limits, validation_split=validation_split)
    job = planning.sent(job, rows)
    local = target if isinstance(target, LocalTarget) else None
    base = base or (local.base if local else None)
    most = max_memory or (local.max_memory if local else None)
    counted = planning.Counted()
    if rows.training.report and rows.training.report.ok:
        trains = local is not None and local.engine == "train"
        counted = planning.count(job, limits, rows, base, trains=trains)
    return make_plan(
        job.rebased(file.parent, Path.cwd()),
        limits,
        training=rows.training,
        validation=rows.validation,
        split=rows.split,
        base=counted.base if local else None,
        tokens=counted.tokens,
        validation_tokens=counted.validation_tokens,
        threads=runner.threads() if local else None,
        max_memory=_size(most) if most else None,
        warnings=counted.warnings,
    )


def submit(ready: Plan, target: Target, *, new: bool = False) -> JobHandle:
    """Start a planned job, once: the same content on the same target is the same job.

    What it will be is written down before it is sent, and after a failure in doubt (no answer, a
    5xx) the job is looked up before it is sent again. So after a crash, the same call finds the job;
    after its end too, however it ended. Only a local run that broke off is started again, and goes
    on where it was.

    Args:
        ready: from `plan_job`.
        target: the one that the plan was made for.
        new: make a second job of the same content.

    Raises:
        TargetError: refused; or in doubt, and then the same call later finds out.
    """
    if ready.target != target.name:
        raise TargetError(
            f"the plan was made for {ready.target}, not for {target.name}",
            hint=f"Plan again with --target {target.name}.",
        )
    content = submissions.digest({"target": target.identity, **ready.meaning})
    with submissions.opened(content) as journal:
        entry = journal.entry(target.name, new=new)
        named = ready.job.model_copy(update={"name": _name(ready.job, entry)})
        is_own = ready.job.name is None or bool(entry.nonce)
        ready = replace(ready, job=named, key=entry.key)
        job, found = submissions.exactly_once(
            journal, entry, lambda known: _found_or_sent(ready, target, known, is_own=is_own)
        )
    return JobHandle(target, job.id, found)


def manifest(ready: Plan, target: Target, *, server: bool = False) -> str:
    """What `submit` would apply to a cluster, as YAML; with `server`, the cluster is asked about it.

    Raises:
        TargetError: the target's jobs are no manifests; or the cluster would refuse it.
    """
    if not isinstance(target, ManifestTarget):
        raise TargetError(
            f"{target.name} has no manifests to show",
            hint="`maas plan` shows what will happen; --dry-run is for Kaito.",
        )
    key = submissions.digest({"target": target.identity, **ready.meaning})
    name = _name(ready.job, submissions.Entry(key, "refused"))
    named = ready.job.model_copy(update={"name": name})
    return target.manifest(replace(ready, job=named, key=key), server=server)


def run(
    job_file: str | Path,
    target: Target,
    dest: str | Path | None = None,
    *,
    base: str | None = None,
    name: str | None = None,
    validation_split: float | None = None,
    new: bool = False,
    on_event: OnEvent = lambda _: None,
) -> RunDir:
    """Plan, submit, follow and download.

    Args:
        job_file: Azure ML's fine-tuning YAML.
        target: where to run it.
        dest: where the files go; a local run without it stays in its own run directory.
        base: see `plan_job`.
        name: see `plan_job`.
        validation_split: see `plan_job`.
        new: see `submit`.
        on_event: told each event as it happens.

    Raises:
        TargetError: the job did not succeed; the message says why.
    """
    ready = plan_job(job_file, target, base=base, name=name, validation_split=validation_split)
    handle = submit(ready, target, new=new)
    for event in handle.follow():
        on_event(event)
    return collect(handle, dest)


def collect(handle: JobHandle, dest: str | Path | None = None) -> RunDir:
    """Download a job that succeeded.

    Raises:
        TargetError: it did not succeed; the message says why.
    """
    job = handle.get()
    if job.status is not JobStatus.SUCCEEDED:
        raise TargetError(f"job {job.id} {job.status}: {job.error or 'no reason given'}")
    if dest is None and isinstance(handle.target, LocalTarget):
        return RunDir(handle.target.path(job.id))
    return handle.download(Path(dest) if dest else Path("runs") / Path(job.id).name)


def deploy(model: str, target: Target, *, endpoint: str | None = None) -> Endpoint:
    """Serve a registered model. On a hosted target that is billed by the hour until `undeploy`.

    Args:
        model: `name:version`, or `ft:base:organisation:suffix:id` of OpenAI's wire, or a checkpoint's.
        target: the one that has it.
        endpoint: its name; without it, one that is made of the model's.

    Raises:
        ConflictError: another model is served under that name.
        TargetError: the service could not bring it up.
    """
    return hosting(target).deploy(model, endpoint=endpoint or endpoint_name(model))


def open_chat(name: str, target: Target, settings: TargetSettings | None = None) -> Chat:
    """A line to a deployed model."""
    known = settings or find_target(target.name)
    if isinstance(known, FoundrySettings):  # one address and one key for all that it serves
        root, headers = known.base_url.removesuffix("/v1"), known.key_header()
        return Chat(EndpointLine(root, known.key(), ca=known.ca, headers=headers, model=name))
    host = hosting(target)
    endpoint = host.endpoint(name)
    if not endpoint.scoring_uri:
        raise TargetError(f"endpoint {name} is {endpoint.state}: it has no address yet")
    ca = known.ca if isinstance(known, AzureMLSettings) else None
    return Chat(EndpointLine(endpoint.scoring_uri, host.keys(name)[0], ca=ca))


def open_local_chat(what: str | Path, *, base: str | None = None) -> Chat:
    """Weights on this machine: an adapter on its base, or a model alone.

    Args:
        what: a run directory; the folder of an adapter, a model, or an MLflow model, as it was
            downloaded; or what `--base` takes.
        base: what to put an adapter on, as for `--base`; None takes what it was trained on.

    Raises:
        RunDirError: there are no weights in it, or nothing says what their base is.
        BaseModelError: the base is missing, or the adapter is another model's.
    """
    folder = Path(what).expanduser()
    if not folder.is_dir():
        if base is not None:
            raise RunDirError(
                f"{what} is no folder", hint="--base is for the folder of an adapter."
            )
        return Chat(LocalLine(str(what), model=str(what)))
    if RunDir(folder).plan_file.exists() and base is None:
        run, done = ended_run(folder)
        known = done.base.source if done.base else None
        return Chat(LocalLine(known, model=done.job.model.asset_name, adapter=run.trained))
    found = find_weights(folder, base=base)
    other = found.trained_on if found.is_mismatched else ""
    return Chat(LocalLine(found.base, model=found.model, adapter=found.adapter, trained_on=other))


def hosting(target: Target) -> HostingTarget:
    """The target as one that serves models.

    Raises:
        TargetError: it does not.
    """
    if not isinstance(target, HostingTarget):
        raise TargetError(
            f"{target.name} does not host models", hint="Name a hosted target with --target."
        )
    return target


def _size(text: str) -> int:
    try:
        return read_size(text)
    except ValueError as error:
        raise SpecError(f"--max-memory: {error}") from error


def _found_or_sent(
    ready: Plan, target: Target, known: submissions.Entry, *, is_own: bool
) -> tuple[Job, bool]:
    """The job, and whether it was there. `is_own`: its name is ours, and no other job has it."""
    if isinstance(target, KeyedTarget):
        find = partial(target.find, ready.key)
        seen = _get(target, known.job) if known.job else None
        if seen is None:
            seen = submissions.look_well(find) if known.state == "intent" else find()
        return (seen, True) if seen is not None else (target.submit(ready), False)
    seen = _get(target, ready.job.name or "")
    broke_off = isinstance(target, LocalTarget) and seen is not None and _broke_off(seen)
    if seen is not None and is_own and not broke_off:
        return seen, True
    # Sent again under a name that is taken: the target compares, and refuses another job.
    return target.submit(ready), seen is not None


def _get(target: Target, job_id: str) -> Job | None:
    try:
        return target.get(job_id)
    except NotFoundError:
        return None


def _broke_off(job: Job) -> bool:
    return job.status.is_terminal and job.status is not JobStatus.SUCCEEDED


def _name(job: FineTuningJob, entry: submissions.Entry) -> str:
    """The file's name, or one that carries the key: whoever submits the same job names it so too."""
    if job.name is not None:
        return f"{job.name[:240]}-{entry.nonce[:8]}" if entry.nonce else job.name
    words = re.sub(r"[^a-z0-9]+", "-", (job.display_name or job.model.asset_name).lower()).strip(
        "-"
    )
    return f"{words[:40] or 'job'}-{entry.key[:12]}"
