"""A run in TensorBoard: its numbers by step, and its plan as text. The only file that knows TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from local_runner.tracking.sinks import numbers
from maas_client.jobs import Event
from maas_client.plan import Plan
from maas_client.spec.rundir import RunDir, RunStatus


class TensorBoardSink:
    """Event files of one run.

    Args:
        run: the run directory that is told.
        plan: its plan.
        folder: what `tensorboard --logdir` is started on; the run gets a folder of its name in it.
    """

    def __init__(self, run: RunDir, plan: Plan, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / (plan.job.name or run.path.name)
        self.place = f"TensorBoard files in {place}"
        # A resumed run takes steps again: what was written of them is hidden, as TensorBoard does it.
        self._writer = SummaryWriter(str(place), purge_step=_next_step(run))
        self._writer.add_text("plan", f"```json\n{json.dumps(plan.to_json(), indent=2)}\n```")

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            for key, value in numbers(event).items():
                self._writer.add_scalar(key, value, int(event.data.get("step", 0)), event.at)
        self._writer.flush()

    def finish(self, status: RunStatus) -> None:
        self._writer.add_text("status", f"{status.status} {status.error or ''}")
        self._writer.close()


def _next_step(run: RunDir) -> int | None:
    steps = run.checkpoint_steps()
    return steps[-1] + 1 if steps else None
