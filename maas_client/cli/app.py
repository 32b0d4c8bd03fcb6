"""The commands on a job file and on data, and the tree of all commands."""

from __future__ import annotations

import datetime as dt
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maas_client.cli import chat, files, hosting, jobs, parcels, preview, render, rows, verdicts
from maas_client.cli.options import (
    Base,
    DryRun,
    JobFile,
    Json,
    MaxMemory,
    MLflow,
    Name,
    New,
    Simulate,
    TargetName,
    TensorBoard,
    ValidationSplit,
)

if TYPE_CHECKING:
    from maas_client.handle import JobHandle
    from maas_client.plan import Plan
    from maas_client.targets.base import Target

app = typer.Typer(
    help="Fine-tune Phi models: one job file for Azure ML, its offline twin, and this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help costs half of the start-up
    pretty_exceptions_enable=False,
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(files.app, name="files")
app.add_typer(hosting.endpoints, name="endpoints")
app.add_typer(hosting.targets, name="targets")
app.command()(rows.validate)
app.command()(rows.convert)
app.command()(rows.split)
app.command()(rows.evaluate)
app.command()(jobs.follow)
app.command()(hosting.deploy)
app.command()(hosting.undeploy)
app.command()(chat.chat)
app.command()(preview.preview)
app.command()(verdicts.verify)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The job file to write.")] = Path("job.yaml"),
    model: Annotated[str, typer.Option(help="A name of `maas models`.")] = "Phi-3-mini-4k-instruct",
    data: Annotated[str, typer.Option(help="Training rows.")] = "train.jsonl",
    task: Annotated[
        str, typer.Option(help="What the rows are for, as in the job file.")
    ] = "chat_completion",
) -> None:
    """Write a job file to start from."""
    from maas_client.cli.template import write_job

    render.line(
        f"wrote {write_job(file, model=model, data=data, task=task)}; next: maas plan {file}"
    )


@app.command()
def plan(
    job_file: JobFile,
    target: TargetName = "local",
    base: Base = None,
    max_memory: MaxMemory = None,
    validation_split: ValidationSplit = None,
    as_json: Json = False,
) -> None:
    """Show what will happen: values and their sources, rows, tokens, steps, warnings."""
    from maas_client import flow
    from maas_client.errors import PlanError

    place = flow.open_target(target)
    try:
        ready = flow.plan_job(
            job_file, place, base=base, validation_split=validation_split, max_memory=max_memory
        )
        render.plan(ready, as_json=as_json)
    except PlanError:
        if not as_json:  # the table shows which values were refused; the error says why
            render.refused(job_file, place)
        raise
    finally:
        place.close()


@app.command()
def run(
    job_file: JobFile,
    target: TargetName = "local",
    base: Base = None,
    validation_split: ValidationSplit = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the files go.")] = None,
    name: Name = None,
    new: New = False,
    simulate: Simulate = False,
    mlflow: MLflow = None,
    tensorboard: TensorBoard = None,
    max_memory: MaxMemory = None,
    as_json: Json = False,
) -> None:
    """Submit a job, follow it, and download what it left.

    The same job again goes on where it was, or is there already; --new makes another.
    """
    from maas_client import flow

    engine = "simulate" if simulate else "train"
    place = flow.open_target(target, engine=engine, mlflow=mlflow, tensorboard=tensorboard)
    ready = flow.plan_job(
        job_file,
        place,
        base=base,
        name=name,
        validation_split=validation_split,
        max_memory=max_memory,
    )
    handle = _submitted(ready, place, new=new, as_json=as_json)
    with_base = f" --base {base}" if base else ""
    with_split = "" if validation_split is None else f" --validation-split {validation_split:g}"
    again = f"maas run {job_file} --target {target}{with_base}{with_split} --name {handle.id}"
    jobs.follow_to_the_end(handle, as_json=as_json, again=again)
    files = flow.collect(handle, out)
    if (mlflow or tensorboard) and not files.tracking_file.exists():  # it ran elsewhere
        flow.track(files, mlflow=mlflow, tensorboard=tensorboard)
    render.run_dir(files, as_json=as_json)
    place.close()


@app.command()
def track(
    run: Annotated[Path, typer.Argument(help="A run directory, of this machine or downloaded.")],
    mlflow: MLflow = None,
    tensorboard: TensorBoard = None,
    as_json: Json = False,
) -> None:
    """Log a run that has ended to MLflow or TensorBoard: parameters, metrics, files, model."""
    from maas_client import flow
    from maas_client.spec.rundir import RunDir

    places = flow.track(RunDir(run.resolve()), mlflow=mlflow, tensorboard=tensorboard)
    render.tracked(places, as_json=as_json)


@app.command()
def submit(
    job_file: JobFile,
    target: TargetName = "local",
    base: Base = None,
    validation_split: ValidationSplit = None,
    name: Name = None,
    new: New = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
    dry_run: DryRun = None,
    max_memory: MaxMemory = None,
    as_json: Json = False,
) -> int:
    """Start a job, once. With --wait, the exit code is the job's.

    The same content on the same target is the same job: submitting it again, after a crash or after
    its end, finds the job, however it ended. --new makes another.
    """
    from maas_client import flow

    place = flow.open_target(target)
    ready = flow.plan_job(
        job_file,
        place,
        base=base,
        name=name,
        validation_split=validation_split,
        max_memory=max_memory,
    )
    if dry_run is not None:
        render.line(flow.manifest(ready, place, server=dry_run == "server").rstrip())
        place.close()
        return 0
    handle = _submitted(ready, place, new=new, as_json=as_json)
    if not wait:
        render.job(handle.get(), as_json=as_json)
        render.hint(f"maas follow {handle.id} --target {target}", as_json=as_json)
        place.close()
        return 0
    code = jobs.follow_to_the_end(handle, as_json=as_json)
    place.close()
    return code


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model, in full.")] = None,
    as_json: Json = False,
) -> None:
    """Show the models that can be tuned, or all that is known of one."""
    from maas_client.cli import models as known

    if name is None:
        render.models(known.table(), known.outsiders(), whole=known.listed(), as_json=as_json)
        return
    entry = known.find(name)
    facts = known.described(entry, today=dt.datetime.now(dt.UTC).date())
    render.model(facts, whole=known.as_json(entry), as_json=as_json)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def mock(context: typer.Context) -> int:
    """The offline twin of the service: serve, status, env, stop, reset."""
    from maas_client.targets import runner

    runner.require("starlette", extra="server")
    return _hand_over("mock", *context.args)


@app.command("stand-in")
def stand_in(
    verb: Annotated[str, typer.Argument(help="install, or path.")] = "install",
) -> int:
    """Bring the stand-in base model: SmolLM2-135M in the Phi-3 architecture."""
    from maas_client.targets import runner

    runner.require()
    return _hand_over("stand-in", verb)


@app.command()
def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")],
) -> None:
    """Print a shell's completion script, for its start-up file: `eval "$(maas completion bash)"`."""
    from typer._completion_shared import get_completion_script

    render.line(get_completion_script(prog_name="maas", complete_var="_MAAS_COMPLETE", shell=shell))


def _hand_over(*arguments: str) -> int:
    """Give the terminal to a runner verb; its exit code is ours."""
    from maas_client.targets import runner

    child = subprocess.Popen(runner.command(*arguments))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # the child has it too, and ends in its own time


def _submitted(ready: Plan, place: Target, *, new: bool, as_json: bool) -> JobHandle:
    """Say what will happen, upload and start the job, and say if it was there already."""
    from maas_client import flow

    render.plan_brief(ready, as_json=as_json)
    with parcels.uploads(place, as_json=as_json):
        handle = flow.submit(ready, place, new=new)
    jobs.say_if_found(handle, as_json=as_json)
    return handle
