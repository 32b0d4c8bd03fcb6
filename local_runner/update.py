"""One optimizer update: which rows, which loss, which step size. Nothing here writes a file.

Everything that decides an update's result is in the plan and in the step's number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from maas_client.errors import MaasError, PlanError
from maas_client.plan import Plan, batch_size, learning_rate

if TYPE_CHECKING:
    from local_runner.data import Example
    from local_runner.learning import Learner


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did."""

    loss: float
    """Mean over the trained tokens of the step, in nats."""
    norm: float
    """Of the gradient, before clipping."""
    tokens: int
    """Tokens that went through the model."""
    accuracy: float
    """The share of the trained tokens that the model would have chosen itself."""


def rows_per_step(values: Mapping[str, Any]) -> int:
    """Rows of one optimizer step, over all its forward passes."""
    return batch_size(values) * int(values["gradient_accumulation_steps"])


def steps_per_epoch(rows: int, values: Mapping[str, Any]) -> int:
    """Optimizer steps of one pass over the rows; the last may be smaller."""
    return math.ceil(rows / rows_per_step(values))


def micro_batches(rows: Sequence[Example], plan: Plan, step: int) -> list[list[Example]]:
    """The forward passes of a step, counted from 0. Each epoch has an order of its own."""
    epoch, place = divmod(step, steps_per_epoch(len(rows), plan.values))
    dice = torch.Generator().manual_seed(plan.seed + epoch)
    order = torch.randperm(len(rows), generator=dice).tolist()
    width, size = rows_per_step(plan.values), batch_size(plan.values)
    chosen = [rows[i] for i in order[place * width : (place + 1) * width]]
    return [chosen[i : i + size] for i in range(0, len(chosen), size)]


def rates(plan: Plan, steps: int) -> Callable[[int], float]:
    """Step, counted from 0 -> learning rate, by Hugging Face's schedule of the plan's name."""
    from transformers import get_scheduler

    values, peak = plan.values, learning_rate(plan.values)
    warmup = int(values.get("warmup_steps") or 0)
    if not warmup and (ratio := values.get("warmup_ratio")):
        warmup = math.ceil(float(ratio) * steps)
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    try:
        schedule = get_scheduler(
            values["lr_scheduler_type"], dummy, num_warmup_steps=warmup, num_training_steps=steps
        )
    except ValueError as error:  # `polynomial` ends at 1e-7 and cannot begin below it
        raise PlanError(
            f"learning_rate {peak:g} does not go with {values['lr_scheduler_type']}: {error}",
            hint="Raise learning_rate, or take another lr_scheduler_type.",
        ) from error
    share = schedule.lr_lambdas[0]
    return lambda step: float(peak * share(step))


def update(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Sequence[Example]],
    *,
    rate: float,
    ceiling: float,
) -> Update:
    """One step of the optimizer.

    Args:
        learner: over the model and its adapter.
        optimizer: over the adapter's weights.
        batches: the step's rows, in the forward passes that they take.
        rate: the learning rate.
        ceiling: gradients are clipped to this norm; 0 turns it off.

    Raises:
        MaasError: the loss is no number any more.
    """
    answers = sum(sum(row.trained[1:]) for batch in batches for row in batch)
    total, right = learner.learn(batches, answers)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(weights, ceiling or math.inf).item()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise MaasError(
            f"the loss is {total} and its gradient {norm}: training has diverged",
            hint="Lower learning_rate or lora_alpha.",
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    tokens = sum(len(row.ids) for batch in batches for row in batch)
    return Update(total, norm, tokens, right / answers)
