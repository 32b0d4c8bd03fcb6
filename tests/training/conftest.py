"""Run directories for the trainer, made by the planner from rows in the test."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from local_runner.models.base import resolve
from maas_client.plan import DataPlan, make_plan
from maas_client.spec import dataset
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import local_limits
from maas_client.spec.rundir import RunDir, write_json

MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"

MakeRun = Callable[..., RunDir]
Runner = Callable[..., subprocess.Popen[str]]


def chat(count: int, *, shift: int = 0) -> list[dict[str, Any]]:
    """Short conversations of different lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Where is tap {n}" + "?" * (n % 4 + 1)},
                {"role": "assistant", "content": f"Left of {n}." + " Truly." * (n % 3)},
            ]
        }
        for n in range(shift, shift + count)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run directory with a plan for the tiny model."""

    def make(
        name: str = "run",
        *,
        rows: Sequence[dict[str, Any]] | None = None,
        held_out: Sequence[dict[str, Any]] | None = None,
        base: str = "tiny",
        task: str = "chat_completion",
        **hyperparameters: object,
    ) -> RunDir:
        def data(part: str, content: Sequence[dict[str, Any]]) -> DataPlan:
            file = tmp_path / f"{name}-{part}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in content))
            return DataPlan(str(file), dataset.check(file, task))

        training = data("train", rows or chat(10))
        validation = data("held-out", held_out) if held_out else None
        knobs = {"learning_rate": 0.002, "logging_steps": 1} | hyperparameters
        job = FineTuningJob.model_validate(
            {
                "type": "finetuning",
                "task": task,
                "model_provider": "custom",
                "model": {"path": MODEL, "type": "mlflow_model"},
                "training_data": {"path": training.path, "type": "uri_file"},
                "hyperparameters": {key: str(value).lower() for key, value in knobs.items()},
                "outputs": {"registered_model": {"name": "m", "type": "mlflow_model"}},
            }
        )
        plan = make_plan(
            job,
            local_limits(job.model, hyperparameters=job.hyperparameters),
            training=training,
            validation=validation,
            base=resolve(base, model=job.model.asset_name).info,
            threads=1,
        )
        run = RunDir(tmp_path / name)
        write_json(run.plan_file, plan.to_json())
        return run

    return make


@pytest.fixture
def start() -> Runner:
    """Start a runner verb in a process of its own."""

    def begin(*words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "local_runner", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


@pytest.fixture
def adapter_bytes() -> Callable[[RunDir], tuple[bytes, bytes]]:
    def read(run: RunDir) -> tuple[bytes, bytes]:
        weights = (run.adapter / "adapter_model.safetensors").read_bytes()
        return weights, (run.adapter / "adapter_config.json").read_bytes()

    return read
