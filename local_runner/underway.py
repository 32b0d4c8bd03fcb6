"""What a training run holds while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from local_runner.data import Example
from local_runner.judging import Judge
from local_runner.learning import Learner
from local_runner.models import base as bases
from local_runner.update import steps_per_epoch
from maas_client.plan import Plan, count_steps
from maas_client.spec.rundir import RunDir

Tell = Callable[..., None]


@dataclass
class Run:
    """One run; the recipe's acts change it."""

    dir: RunDir
    plan: Plan
    base: bases.Base
    model: Any
    """The base with its adapter, or the whole model that is trained."""
    learner: Learner
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    """Step, counted from 0 -> learning rate."""
    rows: list[Example]
    held_out: list[Example]
    tell: Tell
    judge: Judge
    keep_epochs: bool = False
    """Whether each epoch's adapter is kept, and how often the model is right is told."""
    step: int = 0
    halvings: int = 0
    """How often a forward pass has been halved for want of memory."""
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last metric."""
    tokens: int = 0
    """Tokens seen since the last metric."""
    norm: float = 0.0
    """Of the last gradient, before clipping."""
    accuracy: float = 0.0
    """Of the last step."""
    clock: float = 0.0
    """When the last metric was written."""
    saved_at: float = 0.0
    save_seconds: float = 0.0
    """What the last checkpoint took."""

    @property
    def values(self) -> dict[str, Any]:
        return self.plan.values

    @property
    def steps(self) -> int:
        return count_steps(len(self.rows), self.values)

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.rows), self.values)

    @property
    def epoch(self) -> float:
        return round(self.step / self.per_epoch, 4)

    @property
    def products(self) -> torch.autocast:
        """The precision of the forward pass: in bf16 the products, or nothing."""
        on = self.values["precision"] == "bf16"
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=on)

    @property
    def is_stale(self) -> bool:
        """Whether early stopping is asked for and due."""
        patience = int(self.values["early_stopping_patience"])
        return bool(self.values["apply_early_stopping"]) and self.judge.worse >= patience

    @property
    def is_over(self) -> bool:
        return self.step >= self.steps or self.is_stale
