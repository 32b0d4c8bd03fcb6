"""The optimizer of a plan, which weights it decays, and its state as files can hold it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from maas_client.plan import Plan, learning_rate

if TYPE_CHECKING:
    from torch import Tensor

_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Hugging Face's Trainer leaves out the same names."""


def make_optimizer(model: Any, plan: Plan) -> torch.optim.Optimizer:
    """The plan's optimizer over what the model trains; biases and norms are not decayed.

    Raises:
        ImportError: `adamw_bnb_8bit` without bitsandbytes.
    """
    values: dict[str, Any] = plan.values
    groups = [
        {"params": weights, "weight_decay": decay}
        for weights, decay in zip(decay_groups(model), (values["weight_decay"], 0.0), strict=True)
        if weights
    ]
    rate = learning_rate(values)
    match values["optim"]:
        case "sgd":
            return torch.optim.SGD(groups, lr=rate)
        case "adafactor":
            from transformers import Adafactor

            factored: torch.optim.Optimizer = Adafactor(
                groups, lr=rate, scale_parameter=False, relative_step=False
            )
            return factored
        case name:
            adam: dict[str, Any] = {
                "lr": rate,
                "betas": (values["adam_beta1"], values["adam_beta2"]),
                "eps": values["adam_epsilon"],
            }
            if name == "adamw_bnb_8bit":
                from bitsandbytes.optim import AdamW8bit

                made: torch.optim.Optimizer = AdamW8bit(groups, **adam)
                return made
            # One kernel in place of ten for each of some hundred small tensors.
            return torch.optim.AdamW(groups, fused=True, **adam)


def decay_groups(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The trained weights, in a fixed order: those that are decayed, and the others."""
    weights = [(name, w) for name, w in sorted(model.named_parameters()) if w.requires_grad]
    return (
        [weight for name, weight in weights if not _NOT_DECAYED.search(name)],
        [weight for name, weight in weights if _NOT_DECAYED.search(name)],
    )


def weights_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What it changes, in its order."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def state_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors and its plain numbers, each by `<number of the weight>.<name>`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, weight in enumerate(weights_of(optimizer)):
        for name, value in optimizer.state[weight].items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.clone()  # some share one table
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def put_back(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Give it the state that `state_of` took."""
    weights: Sequence[Tensor] = weights_of(optimizer)
    for weight in weights:
        optimizer.state[weight] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        index, _, name = key.partition(".")
        kept = value.clone() if isinstance(value, torch.Tensor) else value
        optimizer.state[weights[int(index)]][name] = kept
