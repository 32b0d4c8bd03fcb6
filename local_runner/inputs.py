"""What a run starts from: its plan, the rows and weights that the plan was made for, its own past."""

from __future__ import annotations

import json
from pathlib import Path

from local_runner.models import base as bases
from maas_client.errors import RunDirError
from maas_client.plan import Plan, plan_from_json
from maas_client.spec.rundir import RunDir, file_digest, read_json, write_whole


def read_plan(run_dir: RunDir) -> Plan:
    """The run's plan.

    Raises:
        RunDirError: there is none that can be read.
    """
    try:
        return plan_from_json(read_json(run_dir.plan_file))
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirError(
            f"{run_dir.plan_file} is not a plan: {error}", hint="Plan again."
        ) from error


def check_inputs(plan: Plan, base: bases.Base) -> None:
    """Whether rows and weights are still those of the plan.

    Raises:
        RunDirError: they are not.
    """
    for data in (plan.training, plan.validation):
        if data and data.report and file_digest(Path(data.path)) != data.report.sha256:
            raise RunDirError(
                f"{data.path} has changed since the plan was made", hint="Plan again."
            )
    if plan.base and plan.base.digest != base.info.digest:
        raise RunDirError(
            f"{base.info.label}: the weights are not those of the plan", hint="Plan again."
        )


def forget_metrics(run_dir: RunDir, *, after: int) -> None:
    """Drop what was measured beyond the checkpoint: those steps are taken again."""
    metrics = run_dir.metrics()
    kept = [metric for metric in metrics if metric["step"] <= after]
    if len(kept) < len(metrics):
        lines = "".join(json.dumps(metric, ensure_ascii=False) + "\n" for metric in kept)
        write_whole(run_dir.metrics_file, lines.encode())
