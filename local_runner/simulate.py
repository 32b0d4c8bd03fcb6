"""The files of a run in a second, with nothing trained: for CI dry runs. No torch.

What it writes says that it was simulated: status, manifest, log, and the adapter's own config.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from local_runner import manifest
from local_runner.clock import Clock
from maas_client.errors import RunDirError
from maas_client.jobs import Event, EventKind, JobStatus
from maas_client.plan import Plan, learning_rate, plan_from_json
from maas_client.spec.rundir import (
    EPOCH_FILE,
    KEPT_EPOCHS,
    EventWriter,
    RunDir,
    RunStatus,
    read_json,
    write_json,
    write_whole,
)

_METRICS = 20
"""At most so many metric lines, however many steps the plan has."""


def simulate(
    run: RunDir,
    *,
    seconds: float = 1.0,
    clock: Clock | None = None,
    keep_epochs: bool = False,
    on_event: Callable[[Event], None] = lambda _: None,
) -> RunStatus:
    """Act as if the run's plan were trained.

    Args:
        run: a directory with a plan.
        seconds: how long to take over it, by the clock.
        clock: whose time goes by and is written down; real time where none is given.
        keep_epochs: leave an adapter of each of the last epochs, as `train` does.
        on_event: told each event as it happens.
    """
    clock = clock or Clock()
    with run.locked():
        before = run.read_status()
        if before is not None and before.status is JobStatus.SUCCEEDED:
            return before
        plan = plan_from_json(read_json(run.plan_file))
        began = clock.time()
        started = before.started_at if before and before.started_at else clock.time()
        status = RunStatus(
            JobStatus.RUNNING, started_at=started, simulated=True, base="nothing: SIMULATED"
        )
        run.write_status(status)
        writer = EventWriter(run, now=clock.time)

        def tell(kind: EventKind, message: str, data: Mapping[str, Any]) -> Event:
            if keep_epochs and "loss" in data:
                data = {**data, "token_accuracy": round(math.exp(-data["loss"]), 6)}
            event = writer.write(kind, message, data)
            on_event(event)
            if keep_epochs and kind == "metric":
                _keep_epochs(run, plan, data["epoch"], at=event.at)
            return event

        tell("status", "SIMULATED: nothing is trained", {"status": "running"})
        if _pretend(run, _curve(plan), seconds, clock, tell):
            _write_adapter(run.adapter, plan)
            took = {"steps": plan.steps, "seconds": round(clock.time() - began, 1)}
            manifest.write(run, plan, None, took=took, simulated=True)
            status = replace(status, status=JobStatus.SUCCEEDED)
        else:
            status = replace(status, status=JobStatus.CANCELLED, error="cancelled")
        words = f"SIMULATED: {status.error or status.status}"
        last = tell("status", words, {"status": str(status.status)})
        status = replace(status, ended_at=last.at)
        run.write_status(status)
        return status


def _pretend(
    run: RunDir,
    curve: Sequence[Mapping[str, float]],
    seconds: float,
    clock: Clock,
    tell: Callable[..., Event],
) -> bool:
    """Write the metrics, those before a kill not again; returns False where the run is cancelled."""
    done = len(run.metrics())
    due = clock.time()
    for metric in curve[done:]:
        due += seconds / len(curve)
        if not clock.wait_until(due, over=run.cancel_file.exists):
            return False
        kind = "eval_loss" if "eval_loss" in metric else "loss"
        words = f"SIMULATED step {metric['step']}/{metric['max_steps']}  {kind} {metric[kind]:.4f}"
        tell("metric", words, metric)
    return True


def _keep_epochs(run: RunDir, plan: Plan, over: float, *, at: float) -> None:
    """Write the adapters of the epochs that are over; the newest ones stay."""
    epochs = max(1, math.ceil(float(plan.values.get("num_train_epochs") or 1)))
    for epoch in range(max(1, int(over) - KEPT_EPOCHS + 1), int(over) + 1):
        if run.epoch(epoch).exists():
            continue
        staged = run.epoch(epoch).with_name(f"{run.epoch(epoch).name}.new")
        shutil.rmtree(staged, ignore_errors=True)
        _write_adapter(staged, plan)
        step = (plan.steps or 0) * epoch // epochs
        write_json(staged / EPOCH_FILE, {"epoch": epoch, "step": step, "at": at})
        staged.replace(run.epoch(epoch))
    for old in run.epochs()[:-KEPT_EPOCHS]:
        shutil.rmtree(run.epoch(old))


def _curve(plan: Plan) -> list[dict[str, float]]:
    """A falling loss that depends on the seed and on nothing else."""
    if plan.steps is None:
        raise RunDirError("the plan does not say how many steps there are", hint="Plan again.")
    dice = random.Random(plan.seed)  # noqa: S311 - not for secrets
    start = dice.uniform(2.0, 4.0)
    lines = min(plan.steps, _METRICS)
    epochs = float(plan.values.get("num_train_epochs") or 1)
    curve = []
    for line in range(1, lines + 1):
        step = plan.steps * line // lines
        share = step / plan.steps
        loss = start * (0.35 + 0.65 * math.exp(-3 * share)) * dice.uniform(0.95, 1.05)
        curve.append(
            {
                "step": step,
                "max_steps": plan.steps,
                "epoch": round(share * epochs, 4),
                "loss": round(loss, 6),
                "grad_norm": round(dice.uniform(0.5, 2.0), 4),
                "learning_rate": learning_rate(plan.values) * (1 - share),
            }
        )
    if plan.validation:
        ends = ((0, 0.0, start * 1.05), (plan.steps, epochs, start * 0.5))
        first, last = (
            {"step": step, "max_steps": plan.steps, "epoch": epoch, "eval_loss": round(loss, 6)}
            for step, epoch, loss in ends
        )
        curve = [first, *curve, last]
    return curve


def _write_adapter(folder: Path, plan: Plan) -> None:
    """A well-formed adapter of zeros, which says what it is."""
    header = {
        "__metadata__": {"format": "pt", "simulated": "true"},
        "base_model.model.simulated.lora_A.weight": {
            "dtype": "F32",
            "shape": [1, 1],
            "data_offsets": [0, 4],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_whole(
        folder / "adapter_model.safetensors", struct.pack("<Q", len(text)) + text + b"\0" * 4
    )
    config = {"peft_type": "LORA", "simulated": True, "r": plan.values.get("lora_r")}
    write_json(folder / "adapter_config.json", config)
    write_whole(folder / "README.md", b"SIMULATED: nothing was trained. The tensor is a zero.\n")
