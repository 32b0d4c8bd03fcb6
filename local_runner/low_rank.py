"""LoRA adapters as the lean forward pass takes them: read from peft's files, and several put side by side."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from local_runner import adapters
from local_runner.lean import PROJECTIONS, LowRank, Place
from maas_client.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight")
_PLAIN_STARTS = (True, False, "gaussian", None)
"""Ways to begin that leave the base as it is; pissa and its like change it when they are loaded."""
_EXTRAS = (
    "use_dora", "use_qalora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern",
    "layer_replication", "fan_in_fan_out", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "arrow_config", "use_bdlora",
)  # fmt: skip
"""peft's settings that make of an adapter more than base + scale · B · A."""


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """One adapter's matrices, by place."""

    rank: int
    parts: Mapping[Place, tuple[Tensor, Tensor]]
    """A, [rank, in], and scale · B, [rank, out]."""


def read(folder: Path) -> Lora | None:
    """A checked adapter; None where it is more than low-rank parts beside the four projections."""
    from safetensors.torch import load_file

    config = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))
    if not _is_plain(config):
        return None
    halves: dict[Place, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / adapters.WEIGHTS).items():
        match = _KEY.fullmatch(key)
        if match is None or match[2] not in PROJECTIONS:
            return None
        if not tensor.isfinite().all():  # it would spoil the answers of all that are in the batch
            raise BaseModelError(f"{folder}: {key} holds numbers that are not finite")
        halves.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor.float()
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    parts = {}
    for place, half in halves.items():
        if half.keys() != {"A", "B"} or len(half["A"]) != rank:
            return None
        parts[place] = (half["A"], (half["B"].t() * scale).contiguous())
    return Lora(rank, parts)


def _is_plain(config: Mapping[str, Any]) -> bool:
    return (
        config.get("peft_type") == "LORA"
        and config.get("bias", "none") == "none"
        and config.get("init_lora_weights", True) in _PLAIN_STARTS
        and not any(config.get(extra) for extra in _EXTRAS)
    )


class Stack:
    """The adapters of the running rows in one pair of matrices a place; built anew when others come."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: tuple[Lora, ...] = ()
        self._parts: Mapping[Place, tuple[Tensor, Tensor]] = {}
        self._owners = torch.empty(0, dtype=torch.long)
        """Which of the held adapters a rank belongs to, [ranks]."""

    def over(self, tokens: Sequence[Lora | None]) -> LowRank | None:
        """What the tokens' adapters add; None where none has one."""
        wanted = dict.fromkeys(lora for lora in tokens if lora is not None)
        if not wanted:
            return None
        # Those whose rows have just left may stay, for others of theirs: building costs a pass over all.
        if not wanted.keys() <= set(self._held) or len(self._held) > 2 * len(wanted):
            self._build(tuple(wanted))
        if len(self._held) == 1 and None not in tokens:
            return LowRank(self._parts, None)
        number = {lora: place for place, lora in enumerate(self._held)}
        owners = torch.tensor([-1 if lora is None else number[lora] for lora in tokens])
        return LowRank(self._parts, (owners[:, None] == self._owners).to(self._dtype))

    def _build(self, held: tuple[Lora, ...]) -> None:
        places = dict.fromkeys(place for lora in held for place in lora.parts)
        self._parts = {place: self._side_by_side(held, place) for place in places}
        counts = torch.tensor([lora.rank for lora in held])
        self._owners = torch.arange(len(held)).repeat_interleave(counts)
        self._held = held

    def _side_by_side(self, held: Sequence[Lora], place: Place) -> tuple[Tensor, Tensor]:
        """[in, ranks] and [ranks, out]; zeros where an adapter leaves the place alone."""
        a, b = next(lora.parts[place] for lora in held if place in lora.parts)
        pairs = [
            lora.parts.get(place)
            or (a.new_zeros(lora.rank, a.shape[1]), b.new_zeros(lora.rank, b.shape[1]))
            for lora in held
        ]
        left, right = zip(*pairs, strict=True)
        return torch.cat(left).to(self._dtype).t(), torch.cat(right).to(self._dtype)
