"""What a run's numbers can be told to, and which of them were asked for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from maas_client.errors import RunnerError
from maas_client.jobs import Event
from maas_client.plan import Plan
from maas_client.spec.rundir import RunDir, RunStatus, write_json

MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own; `--mlflow` says the same."""


class Sink(Protocol):
    """Takes what a run says. It may fail: the run does not."""

    place: str
    """Where to look, in words for people."""

    def take(self, events: Sequence[Event]) -> None:
        """Metrics, in their order."""

    def finish(self, status: RunStatus) -> None:
        """The end: what the run left, and how it ended."""


def asked_for(
    run: RunDir, plan: Plan, *, mlflow: str | None = None, tensorboard: Path | None = None
) -> list[Sink]:
    """The sinks of a run; MLFLOW_TRACKING_URI counts where no `mlflow` is given.

    Raises:
        RunnerError: one was asked for that is not installed, or that cannot be reached.
    """
    found: list[Sink] = []
    uri = mlflow or os.environ.get(MLFLOW_VARIABLE)
    if uri:
        _require("mlflow")
        from local_runner.tracking.mlflow_sink import MLflowSink

        found.append(MLflowSink(run, plan, uri))
    if tensorboard:
        _require("tensorboard")
        from local_runner.tracking.tensorboard_sink import TensorBoardSink

        found.append(TensorBoardSink(run, plan, tensorboard))
    return found


def numbers(event: Event) -> dict[str, float]:
    """What a metric event measures, by name; its step is none of it."""
    return {
        key: float(value)
        for key, value in event.data.items()
        if key not in ("step", "max_steps") and isinstance(value, int | float)
    }


def note(run: RunDir, **said: object) -> None:
    """Keep in the run directory where it was tracked, so that a resumed run goes on there."""
    write_json(run.tracking_file, {**run.tracking(), **said})


def _require(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise RunnerError(
            f"{module} was asked for and is not installed",
            hint=f'pip install "maas-finetune[{module}]"',
        )
