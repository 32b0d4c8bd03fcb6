"""Rotary positions, plain ones and LongRoPE's: Phi-3-small's, and Phi-3.5-MoE's.

Nothing is kept: the tables are a few thousand numbers, and a model that is built before its weights are
there has no place for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LONG_TYPES = ("su", "longrope")
"""Two names of the same thing; the first is the older."""


def check_scaling(scaling: Mapping[str, Any], head_dim: int) -> None:
    """Whether a config's `rope_scaling` is one that is understood here.

    Raises:
        ValueError: it is not; with the key and what it should be.
    """
    kind = scaling.get("type") or scaling.get("rope_type")
    if kind not in LONG_TYPES:
        raise ValueError(f"rope_scaling type {kind!r} is not known here; {' or '.join(LONG_TYPES)}")
    for key in ("short_factor", "long_factor"):
        count = len(scaling.get(key) or ())
        if count != head_dim // 2:
            raise ValueError(f"rope_scaling {key} has {count} numbers; {head_dim // 2} are needed")


@dataclass(frozen=True, slots=True)
class Rotary:
    """How the heads of a model are turned."""

    size: int
    """Features of a head."""
    base: float
    scaling: Mapping[str, Any] | None = None
    """`short_factor`, `long_factor`, and `short_mscale`, `long_mscale` where the checkpoint gives them."""
    before: int = 0
    """Up to so many tokens the short factors hold: the length before it was extended."""
    longest: int = 0
    """The length afterwards."""
    step: float = 1.0
    """From a place to the next."""

    def is_long(self, length: int) -> bool:
        """Whether a text of so many tokens takes the long factors, for all of its places."""
        return self.scaling is not None and length > self.before

    def turns(self, places: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Places, [batch, tokens], to cosine and sine, [batch, tokens, size] each; computed in fp32."""
        steps = torch.arange(0, self.size, 2, dtype=torch.float32, device=places.device)
        speeds = 1.0 / self.base ** (steps / self.size)  # [size / 2]
        magnitude = 1.0
        if self.scaling is not None:
            which = "long" if self.is_long(int(places.max()) + 1) else "short"
            speeds = speeds / torch.tensor(self.scaling[f"{which}_factor"], device=places.device)
            magnitude = float(self.scaling.get(f"{which}_mscale") or self._own_magnitude)
        half = (places.float() * self.step)[..., None] * speeds
        angles = torch.cat([half, half], -1)
        return (angles.cos() * magnitude).to(dtype), (angles.sin() * magnitude).to(dtype)

    @property
    def _own_magnitude(self) -> float:
        """LongRoPE's, where the checkpoint does not give one."""
        ratio = self.longest / self.before
        return math.sqrt(1 + math.log(ratio) / math.log(self.before)) if ratio > 1 else 1.0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + half). x: [batch, heads, tokens, size], cos, sin: [batch, 1, tokens, size]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class MoeRotary(nn.Module):
    """Phi-3.5-MoE's. transformers' own (5.23) keep the short factors where the text is long."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        given = config.rope_parameters
        self.rotary = Rotary(
            size=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            base=given["rope_theta"],
            scaling=given,
            before=given["original_max_position_embeddings"],
            longest=config.max_position_embeddings,
        )

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, tokens] -> cosine and sine, [batch, tokens, size], in the type of x."""
        return self.rotary.turns(position_ids, x.dtype)
