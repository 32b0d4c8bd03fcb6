"""The live view of a running job: step, loss, tokens per second, time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn


def make_bar() -> Progress:
    """A progress bar whose numbers come from the job's metrics."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        transient=False,
    )


def show(bar: Progress, task: TaskID, metric: Mapping[str, Any]) -> None:
    """Move the bar to a metric's step."""
    if "eval_loss" in metric:
        step = metric.get("step", 0)
        bar.console.print(
            f"step {step}: validation loss {metric['eval_loss']:.4f}", highlight=False
        )
    if "loss" not in metric:
        return
    numbers = [f"loss {metric['loss']:.4f}"]
    if rate := metric.get("tokens_per_second"):
        numbers.append(f"{rate:,.0f} tokens/s")
    if (left := metric.get("seconds_left")) is not None:
        numbers.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    bar.update(
        task,
        description="training",
        completed=metric.get("step", 0),
        total=metric.get("max_steps"),
        numbers="  ".join(numbers),
    )
