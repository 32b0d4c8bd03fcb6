"""The files of a run in a second, with nothing trained: for CI dry runs. No torch.

What it writes says that it was simulated: status, manifest, log, and the adapter's own config.
"""

from __future__ import annotations

import json
import math
import random
import struct
import time
from collections.abc import Callable
from dataclasses import replace

from local_runner import manifest
from maas_client.errors import RunDirError
from maas_client.jobs import Event, JobStatus
from maas_client.plan import Plan, learning_rate, plan_from_json
from maas_client.spec.rundir import EventWriter, RunDir, RunStatus, read_json, write_whole

_METRICS = 20
"""At most so many metric lines, however many steps the plan has."""


def simulate(
    run: RunDir, *, seconds: float = 1.0, on_event: Callable[[Event], None] = lambda _: None
) -> RunStatus:
    """Act as if the run's plan were trained.

    Args:
        run: a directory with a plan.
        seconds: how long to take over it.
        on_event: told each event as it happens.
    """
    with run.locked():
        before = run.read_status()
        if before is not None and before.status is JobStatus.SUCCEEDED:
            return before
        plan = plan_from_json(read_json(run.plan_file))
        started = before.started_at if before and before.started_at else time.time()
        status = RunStatus(
            JobStatus.RUNNING, started_at=started, simulated=True, base="nothing: SIMULATED"
        )
        run.write_status(status)
        writer = EventWriter(run)
        on_event(writer.write("status", "SIMULATED: nothing is trained", {"status": "running"}))
        done = run.metrics()
        at = int(done[-1]["step"]) if done else 0
        for metric in _curve(plan):
            if metric["step"] <= at and at:
                continue
            if run.cancel_file.exists():
                status = replace(
                    status, status=JobStatus.CANCELLED, error=f"cancelled at step {at}"
                )
                break
            time.sleep(seconds / _METRICS)
            at = int(metric["step"])
            kind = "eval_loss" if "eval_loss" in metric else "loss"
            words = f"SIMULATED step {at}/{metric['max_steps']}  {kind} {metric[kind]:.4f}"
            on_event(writer.write("metric", words, metric))
        else:
            _write_adapter(run, plan)
            manifest.write(
                run, plan, None, took={"steps": plan.steps, "seconds": seconds}, simulated=True
            )
            status = replace(status, status=JobStatus.SUCCEEDED)
        status = replace(status, ended_at=time.time())
        words = f"{status.status}: {status.error}" if status.error else str(status.status)
        on_event(writer.write("status", words, {"status": str(status.status)}))
        run.write_status(status)
        return status


def _curve(plan: Plan) -> list[dict[str, float]]:
    """A falling loss that depends on the seed and on nothing else."""
    if plan.steps is None:
        raise RunDirError("the plan does not say how many steps there are")
    dice = random.Random(plan.seed)  # noqa: S311 - not for secrets
    start = dice.uniform(2.0, 4.0)
    every = max(1, plan.steps // _METRICS)
    curve = []
    for step in range(every, plan.steps + 1, every):
        share = step / plan.steps
        loss = start * (0.35 + 0.65 * math.exp(-3 * share)) * dice.uniform(0.95, 1.05)
        curve.append(
            {
                "step": step,
                "max_steps": plan.steps,
                "epoch": round(share * float(plan.values.get("num_train_epochs") or 1), 4),
                "loss": round(loss, 6),
                "grad_norm": round(dice.uniform(0.5, 2.0), 4),
                "learning_rate": learning_rate(plan.values) * (1 - share),
            }
        )
    if plan.validation:
        first = {
            "step": 0,
            "max_steps": plan.steps,
            "epoch": 0.0,
            "eval_loss": round(start * 1.05, 6),
        }
        last = {"step": plan.steps, "max_steps": plan.steps, "eval_loss": round(start * 0.5, 6)}
        curve = [first, *curve, last | {"epoch": float(plan.values.get("num_train_epochs") or 1)}]
    return curve


def _write_adapter(run: RunDir, plan: Plan) -> None:
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
        run.adapter / "adapter_model.safetensors", struct.pack("<Q", len(text)) + text + b"\0" * 4
    )
    config = {"peft_type": "LORA", "simulated": True, "r": plan.values.get("lora_r")}
    write_whole(run.adapter / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())
