"""`maas jobs`: list, show, logs, follow, cancel, download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maas_client.cli import render
from maas_client.cli.options import Json, TargetName

if TYPE_CHECKING:
    from maas_client.handle import JobHandle

app = typer.Typer(help="Jobs of a target.", no_args_is_help=True, rich_markup_mode=None)
JobId = Annotated[str, typer.Argument(help="The job's name.")]


@app.command("list")
def list_jobs(
    target: TargetName = "local",
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """The newest jobs."""
    place = _open(target)
    render.jobs(place.list(limit=limit), as_json=as_json)
    place.close()


@app.command()
def show(job: JobId, target: TargetName = "local", as_json: Json = False) -> None:
    """One job; the reason of a failure."""
    place = _open(target)
    render.job(place.get(job), as_json=as_json)
    place.close()


@app.command()
def logs(job: JobId, target: TargetName = "local", as_json: Json = False) -> None:
    """What happened so far."""
    place = _open(target)
    for event in place.events(job):
        render.event(event, as_json=as_json)
    place.close()


@app.command()
def follow(job: JobId, target: TargetName = "local", as_json: Json = False) -> int:
    """Watch a job to its end. The exit code is the job's."""
    from maas_client.handle import JobHandle

    place = _open(target)
    code = follow_to_the_end(JobHandle(place, job), as_json=as_json)
    place.close()
    return code


@app.command()
def cancel(job: JobId, target: TargetName = "local", as_json: Json = False) -> None:
    """Ask a job to stop."""
    place = _open(target)
    place.cancel(job)
    render.job(place.get(job), as_json=as_json)
    place.close()


@app.command()
def download(
    job: JobId,
    target: TargetName = "local",
    out: Annotated[Path | None, typer.Option("--out", help="Where the files go.")] = None,
    as_json: Json = False,
) -> None:
    """Bring what an ended job left."""
    place = _open(target)
    render.run_dir(place.download(job, out or Path("runs") / job), as_json=as_json)
    place.close()


def follow_to_the_end(handle: JobHandle, *, as_json: bool, again: str = "") -> int:
    """Show a job's events until it has ended; on Ctrl-C, say how to pick it up again."""
    from maas_client.jobs import JobStatus
    from maas_client.targets.local import LocalTarget

    try:
        with render.Live(as_json=as_json) as live:
            for event in handle.follow():
                live.event(event)
    except KeyboardInterrupt:
        if again and isinstance(handle.target, LocalTarget):
            handle.target.interrupt(handle.id)
            render.hint(f"interrupted; resume with: {again}", as_json=as_json)
        else:
            word = f"maas jobs follow {handle.id} --target {handle.target.name}"
            render.hint(f"the job goes on; watch it with: {word}", as_json=as_json)
        raise
    job = handle.get()
    render.job_end(job, as_json=as_json)
    return 0 if job.status is JobStatus.SUCCEEDED else 1


def _open(target: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a Target; its module is heavy
    from maas_client.flow import open_target

    return open_target(target)
