"""Which evaluation was the best, and whether there is still a gain: as Hugging Face's Trainer has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Judge:
    """What is remembered of the evaluations so far."""

    by_accuracy: bool
    """Whether the share that is right decides, and not the loss."""
    threshold: float
    """What counts as a gain."""
    best: float | None = None
    """Of the best evaluation: its loss, or its share that is right, negated. Lower is better."""
    best_step: int | None = None
    worse: int = 0
    """Evaluations in a row without a gain, for early stopping."""

    def take(self, step: int, loss: float, accuracy: float) -> bool:
        """Hear of an evaluation; returns whether it is the best."""
        found = -accuracy if self.by_accuracy else loss
        gain = math.inf if self.best is None else self.best - found
        # A small gain makes a new best, and is no reason to go on.
        self.worse = 0 if gain > self.threshold else self.worse + 1
        if gain > 0:
            self.best, self.best_step = found, step
        return gain > 0


def open_judge(values: Mapping[str, Any]) -> Judge:
    """A judge by a plan's values."""
    return Judge(
        by_accuracy=values.get("metric_for_best_model") == "token_accuracy",
        threshold=float(values["early_stopping_threshold"]),
    )
