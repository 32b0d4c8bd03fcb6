"""`maas jobs`: list, show, logs, follow, cancel, pause, resume, checkpoints, download."""

# mypy: disable-error-code="type-abstract"
# A protocol is asked after here, and never made.
from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from maas_client.cli import parcels, render
from maas_client.cli.options import Json, TargetName

if TYPE_CHECKING:
    from maas_client.handle import JobHandle
    from maas_client.targets.base import Target

app = typer.Typer(help="Jobs of a target.", no_args_is_help=True, rich_markup_mode=None)
Able = TypeVar("Able")
JobId = Annotated[str, typer.Argument(help="The job's name.")]


@app.command("list")
def list_jobs(
    target: TargetName = "local",
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """The newest jobs."""
    place = open_place(target)
    render.jobs(place.list(limit=limit), as_json=as_json)
    place.close()


@app.command()
def show(job: JobId, target: TargetName = "local", as_json: Json = False) -> None:
    """One job; the reason of a failure."""
    place = open_place(target)
    render.job(place.get(job), as_json=as_json)
    place.close()


@app.command()
def logs(job: JobId, target: TargetName = "local", as_json: Json = False) -> None:
    """What happened so far."""
    place = open_place(target)
    for event in place.events(job):
        render.event(event, as_json=as_json)
    place.close()


@app.command()
def follow(
    job: JobId,
    target: TargetName = "local",
    after: Annotated[int, typer.Option(help="The last event that is known already.", min=0)] = 0,
    as_json: Json = False,
) -> int:
    """Watch a job to its end; lost connections are taken up again. Ctrl-C leaves the job alone.

    Exit code 0 if it succeeded, 1 if it failed or was cancelled, 130 after Ctrl-C. --json prints one
    event a line and nothing else.
    """
    from maas_client.handle import JobHandle

    place = open_place(target)
    code = follow_to_the_end(JobHandle(place, job), as_json=as_json, after=after, only_events=True)
    place.close()
    return code


@app.command()
def cancel(job: JobId, target: TargetName = "local", as_json: Json = False) -> None:
    """Ask a job to stop."""
    place = open_place(target)
    place.cancel(job)
    render.job(place.get(job), as_json=as_json)
    place.close()


@app.command()
def pause(job: JobId, target: TargetName = "foundry", as_json: Json = False) -> None:
    """Ask a job to wait; it keeps its place."""
    from maas_client.targets.base import PausableTarget

    with closing(open_place(target)) as place:
        render.job(able(place, PausableTarget, "pause jobs").pause(job), as_json=as_json)


@app.command()
def resume(job: JobId, target: TargetName = "foundry", as_json: Json = False) -> None:
    """Let a paused job go on."""
    from maas_client.targets.base import PausableTarget

    with closing(open_place(target)) as place:
        render.job(able(place, PausableTarget, "resume jobs").resume(job), as_json=as_json)


@app.command()
def checkpoints(job: JobId, target: TargetName = "foundry", as_json: Json = False) -> None:
    """The models that a job kept on its way; each can be deployed or asked."""
    from maas_client.targets.base import CheckpointTarget

    with closing(open_place(target)) as place:
        found = able(place, CheckpointTarget, "keep checkpoints").checkpoints(job)
        parcels.checkpoints(found, as_json=as_json)


@app.command()
def download(
    job: JobId,
    target: TargetName = "local",
    out: Annotated[Path | None, typer.Option("--out", help="Where the files go.")] = None,
    as_json: Json = False,
) -> None:
    """Bring what an ended job left."""
    place = open_place(target)
    render.run_dir(place.download(job, out or Path("runs") / job), as_json=as_json)
    place.close()


def follow_to_the_end(
    handle: JobHandle, *, as_json: bool, again: str = "", after: int = 0, only_events: bool = False
) -> int:
    """Show a job's events until it has ended; on Ctrl-C, say how to pick it up again."""
    from maas_client.cli.progress import Live
    from maas_client.jobs import JobStatus
    from maas_client.targets.local import LocalTarget

    try:
        with Live(handle.get(), as_json=as_json) as live:
            for event in handle.follow(after=after, on_line=live.on_line):
                live.event(event)
                after = event.seq
    except KeyboardInterrupt:
        if again and isinstance(handle.target, LocalTarget):
            handle.target.interrupt(handle.id)
            render.hint(f"interrupted; resume with: {again}", as_json=False)
        else:
            word = f"maas follow {handle.id} --target {handle.target.name}"
            word += f" --json --after {after}" if as_json else ""
            render.hint(f"the job goes on; watch it with: {word}", as_json=False)
        raise
    job = handle.get()
    if not (as_json and only_events):
        render.job_end(job, as_json=as_json)
    return 0 if job.status is JobStatus.SUCCEEDED else 1


def say_if_found(handle: JobHandle, *, as_json: bool) -> None:
    """Somebody who submits a job again wants to know that it is the same one."""
    if handle.found:
        render.hint(
            f"job {handle.id} was submitted before: it is the same one, and no second was made; "
            "--new makes another",
            as_json=as_json,
        )


def open_place(target: str) -> Target:
    """The target of that name."""
    from maas_client.flow import open_target  # heavy

    return open_target(target)


def able(place: Target, kind: type[Able], what: str) -> Able:
    """The target as one that can do that.

    Raises:
        TargetError: it cannot.
    """
    from maas_client.errors import TargetError

    if not isinstance(place, kind):
        raise TargetError(
            f"{place.name} does not {what}", hint="Name another target with --target."
        )
    return place
