"""What a job on a cluster left, in the shape of a run directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from maas_client.jobs import Event, Job
from maas_client.plan import Plan
from maas_client.spec.job import FineTuningJob
from maas_client.spec.rundir import (
    RunDir,
    RunStatus,
    append_line,
    file_digest,
    write_json,
    write_whole,
)


def told(plan: Plan) -> FineTuningJob:
    """The plan's job with the rows where the plan read them."""
    data = plan.job.training_data.model_copy(update={"path": plan.training.path})
    return plan.job.model_copy(update={"training_data": data})


def fill(
    run: RunDir,
    job: Job,
    record: Mapping[str, Any],
    events: Iterable[Event],
    origin: Mapping[str, str],
) -> None:
    """Fill the run directory, and say where all of it is from, with a digest of every file.

    Args:
        run: a run directory with at most the adapter in it.
        job: as it ended.
        record: the ConfigMap with its job file and plan; empty where another program made the job.
        events: what happened.
        origin: which job of which cluster this is.
    """
    kept = record.get("data") or {}
    for name, file in (("job.yaml", run.job_file), ("plan.json", run.plan_file)):
        if name in kept:
            write_whole(file, kept[name].encode())
    log = []
    for event in events:
        append_line(run.events_file, event.to_json())
        if event.kind == "metric":
            append_line(run.metrics_file, {"at": event.at, **event.data})
        if event.kind == "log":
            log.append(event.message)
    write_whole(run.log_file, "".join(f"{line}\n" for line in log).encode())
    run.write_status(
        RunStatus(job.status, error=job.error, started_at=job.created_at, ended_at=job.ended_at)
    )
    write_json(run.origin_file, dict(origin))
    files = sorted(file for file in run.path.rglob("*") if file.is_file())
    write_json(
        run.manifest_file,
        {
            "simulated": False,
            "job": job.id,
            "model": job.output_model,
            "outputs": {str(file.relative_to(run.path)): file_digest(file) for file in files},
        },
    )
