"""Starts that change the base (PiSSA, OLoRA), and their result as an adapter of the plain base.

They move a part of each matrix into the adapter, so that what they train is W - s·B₀·A₀ + s·B·A. Beside
the plain W that is a LoRA of twice the rank: s·[B, -B₀]·[A; A₀]. So it is saved, and loads anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_CHANGE_THE_BASE = ("pissa", "olora")


def changes_the_base(config: Any) -> bool:
    """Whether the start of this config does."""
    start = getattr(config, "init_lora_weights", None)
    return isinstance(start, str) and start.startswith(_CHANGE_THE_BASE)


def beside_plain_base(now: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter of twice the rank.

    Args:
        now: A, [rank, in], and B, [out, rank], by peft's names.
        begun: the same before the first step.
    """
    import torch

    return {
        key: torch.cat((tensor, begun[key]))
        if ".lora_A." in key
        else torch.cat((tensor, -begun[key]), dim=1)
        for key, tensor in now.items()
    }


def config_beside_plain_base(config: Mapping[str, Any]) -> dict[str, Any]:
    """The saved config that goes with it: the scale stays what it was."""
    growth = math.sqrt(2) if config.get("use_rslora") else 2
    return {
        **config,
        "r": 2 * config["r"],
        "lora_alpha": config["lora_alpha"] * growth,
        "init_lora_weights": True,
    }
