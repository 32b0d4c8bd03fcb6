"""One run of our trainer, as the benchmark's child: until its time is up; says what it took."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from training_set import SIZES, VOCABULARY


def train(given: dict[str, Any]) -> dict[str, Any]:
    """given: run, began, seconds."""
    from local_runner.train import train as train_run
    from maas_client.spec.rundir import RunDir

    run = RunDir(Path(given["run"]))
    marks: list[tuple[float, float]] = []
    losses: list[float] = []

    def watch(event: Any) -> None:
        if event.kind != "metric" or "loss" not in (event.data or {}):
            return
        marks.append((time.time(), sum(os.times()[:4])))
        losses.append(event.data["loss"])
        if marks[-1][0] - marks[0][0] > given["seconds"] and len(marks) > 1:
            run.cancel_file.touch()

    train_run(run, on_event=watch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "first": marks[0][0] - given["began"],
        "seconds": marks[-1][0] - marks[0][0],
        "cpu": marks[-1][1] - marks[0][1],
        "peak": peak,
        "losses": losses,
        **_counted(run, len(marks), given["size"]),
    }


def _counted(run: Any, steps: int, size: str) -> dict[str, float]:
    """Tokens, trained tokens and the products' operations of the steps after the first."""
    from local_runner.data import ChatTokenizer, load_examples
    from local_runner.update import micro_batches
    from maas_client.plan import plan_from_json
    from maas_client.spec.rundir import read_json

    plan = plan_from_json(read_json(run.plan_file))
    tokenizer = ChatTokenizer(Path(plan.base.source))
    rows = load_examples(tokenizer, Path(plan.training.path), max_length=4096, task=plan.job.task)
    seen = [
        row
        for step in range(1, steps)
        for batch in micro_batches(rows, plan, step)
        for row in batch
    ]
    tokens = sum(len(row.ids) for row in seen)
    trained = sum(sum(row.trained[1:]) for row in seen)
    return {"tokens": tokens, "trained": trained, "flops": flops(size, tokens, trained)}


def flops(size: str, tokens: int, trained: int) -> float:
    """Operations of the forward and input-gradient products that are done: no attention, no adapter.

    The first layer's first product needs no gradient of its input; behind the last attention only trained
    rows go on.
    """
    hidden, inner, layers, _ = SIZES[size]
    qkv, rest = 3 * hidden * hidden, hidden * hidden + 3 * hidden * inner
    whole = 4 * tokens * ((layers - 1) * (qkv + rest) + qkv) - 2 * tokens * qkv
    return whole + 4 * trained * (rest + VOCABULARY * hidden)


def products(given: dict[str, Any]) -> dict[str, Any]:
    """The fp32 rate of this size's products, as they are met in training: a thread for each worker."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    hidden, inner, *_ = SIZES[given["size"]]
    torch.set_num_threads(1)
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    rows = 480
    sets = [
        [(torch.randn(rows, i), torch.randn(o, i), torch.randn(rows, o)) for i, o in shapes]
        for _ in range(given["threads"])
    ]

    def work(mine: list[Any]) -> tuple[float, float]:
        done, began = 0.0, time.monotonic()
        while time.monotonic() - began < given["seconds"]:
            for x, weight, grad in mine:
                torch.mm(x, weight.t())
                torch.mm(grad, weight)
                done += 4 * rows * weight.numel()
        return done, time.monotonic() - began

    with ThreadPoolExecutor(given["threads"]) as pool:
        rates = [done / spent for done, spent in pool.map(work, sets)]
    return {"rate": sum(rates)}


def main() -> None:
    given = json.loads(sys.argv[1])
    made = products(given) if given["way"] == "products" else train(given)
    Path(given["result"]).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
