"""What runs a job: a child process on a run directory. Handed to the twin, so that it needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maas_client.plan import BaseInfo
from maas_client.spec.rundir import RunDir

_RUNNER = (sys.executable, "-P", "-m", "local_runner")


class EngineError(Exception):
    """The engine cannot do it; the message says why."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How jobs are run.

    Args:
        name: `train`, or `simulate` for the same files in a second.
        base: what to train, as for `--base`; an empty one takes each model's own weights.
        seconds: how long a simulated job takes, by the clock.
        clock: the file with the pace of the simulated runs' time.
    """

    name: str
    base: str = "stand-in"
    seconds: float = 1.0
    clock: Path | None = None
    runner: tuple[str, ...] = _RUNNER
    _bases: dict[str, BaseInfo] = field(default_factory=dict)

    @property
    def simulates(self) -> bool:
        return self.name == "simulate"

    @property
    def threads(self) -> int:
        """As the client counts them, so that both make the same adapter."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))

    def base_info(self, model: str) -> BaseInfo | None:
        """The weights that a job on this model starts from; None where nothing is trained.

        Raises:
            EngineError: there are none.
        """
        if self.simulates:
            return None
        if model not in self._bases:
            arguments = ("base", *self._base(model))
            self._bases[model] = BaseInfo(**self._ask(*arguments))
        return self._bases[model]

    def start(self, run: RunDir, *, keep_epochs: bool = False) -> subprocess.Popen[bytes]:
        """Start the run, or go on with it. The child outlives us, and holds the run's lock."""
        pace: tuple[str, ...] = ("--seconds", str(self.seconds)) if self.simulates else ()
        if self.simulates and self.clock is not None:
            pace += ("--clock", str(self.clock))
        if keep_epochs:
            pace += ("--keep-epochs",)
        with run.log_file.open("ab") as log:
            child = subprocess.Popen(
                (*self.runner, self.name, "--quiet", *pace, str(run.path)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        run.note_process(child.pid)
        return child

    def answer_command(self, model: str) -> tuple[str, ...]:
        """The process that answers with a base and its adapters."""
        return (*self.runner, "answer", *self._base(model))

    def weights(self, model: str) -> str:
        """What tells the weights of a catalogue's model from another's."""
        return self.base or model

    def _base(self, model: str) -> tuple[str, ...]:
        return (*(("--base", self.base) if self.base else ()), "--model", model)

    def _ask(self, *arguments: str) -> Any:
        done = subprocess.run(
            (*self.runner, *arguments), capture_output=True, text=True, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        answer = json.loads(lines[-1]) if lines else {}
        if done.returncode != 0 or "error" in answer:
            words = answer.get("error", {}).get("message") or done.stderr.strip()[-500:]
            raise EngineError(words or f"the engine ended with {done.returncode}")
        return answer


def tail(file: Path, characters: int = 500) -> str:
    """The end of a log."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")[-characters:].strip()
    except OSError:
        return ""
