"""What a hosted job left, in the shape of a run directory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maas_client.errors import TargetError
from maas_client.jobs import Job
from maas_client.spec.rundir import (
    RunDir,
    RunStatus,
    append_line,
    read_json,
    write_json,
    write_whole,
)
from maas_client.targets.azure_ml.log import EventLog

_ADAPTER = "adapter_config.json"


def unpack(raw: Mapping[str, Any], run: RunDir, job: Job, origin: Mapping[str, str]) -> None:
    """Fill the run directory.

    Args:
        raw: where the worker put artifacts and model, and the job as YAML.
        run: an empty run directory.
        job: the job as it ended.
        origin: which job of which workspace this is.
    """
    artifacts = Path(raw["artifacts"]) if raw["artifacts"] else None
    log = _unpack_artifacts(artifacts, run) if artifacts else ""
    if raw["model"]:
        _unpack_model(Path(raw["model"]), run)
    if not run.job_file.exists():
        write_whole(run.job_file, raw["yaml"].encode())
    if not run.events_file.exists():
        _write_events(run, job, log)
    manifest = read_json(run.manifest_file) if run.manifest_file.exists() else {}
    base = manifest.get("base") or {}
    run.write_status(
        RunStatus(
            job.status,
            error=job.error,
            started_at=job.created_at,
            ended_at=job.ended_at,
            simulated=job.simulated or bool(manifest.get("simulated")),
            base=job.base or base.get("label", ""),
        )
    )
    write_json(run.origin_file, dict(origin))


def _unpack_artifacts(artifacts: Path, run: RunDir) -> str:
    """Take over the records that the runner wrote; returns the log."""
    outputs = artifacts / "outputs"
    for file in (
        run.job_file,
        run.plan_file,
        run.manifest_file,
        run.metrics_file,
        run.events_file,
    ):
        if (found := outputs / file.name).is_file():
            shutil.move(found, file)
    logs = sorted(artifacts.glob("user_logs/std_log*.txt"))
    if not logs:
        return ""
    text = logs[0].read_text(encoding="utf-8", errors="replace")
    shutil.move(logs[0], run.log_file)
    return text


def _unpack_model(model: Path, run: RunDir) -> None:
    """The adapter, and the merged model where there is one, wherever the MLflow folder has them."""
    configs = sorted(model.rglob(_ADAPTER), key=lambda file: len(file.parts))
    if configs:
        shutil.move(configs[0].parent, run.adapter)
    weights = sorted(model.rglob("config.json"), key=lambda file: len(file.parts))
    if weights:
        shutil.move(weights[0].parent, run.merged)
    if not configs and not weights:
        files = ", ".join(str(p.relative_to(model)) for p in sorted(model.rglob("*"))[:10])
        raise TargetError(f"the registered model holds neither an adapter nor a model: {files}")


def _write_events(run: RunDir, job: Job, log: str) -> None:
    """Events and metrics out of the log, where the service kept no record of them."""
    events = EventLog()
    lines = [line for line in log.splitlines() if line.strip()]
    at = job.ended_at or job.created_at or 0.0
    events.update(job.status, lines, at=at, error=job.error)
    run.metrics_file.unlink(missing_ok=True)  # half a record is none
    for event in events.events:
        append_line(run.events_file, event.to_json())
        if event.kind == "metric":
            append_line(run.metrics_file, {"at": event.at, **event.data})
