"""The sizes of Azure's machines that fine-tuning is about, and which of them a model can be tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maas_client.spec.catalog import ModelEntry


@dataclass(frozen=True, slots=True)
class Size:
    """What a machine has."""

    name: str
    cpus: int
    memory: int
    """GB"""
    gpus: int = 0
    gpu_memory: int = 0
    """GB of all of its GPUs together."""

    @property
    def family(self) -> str:
        """The family that quotas are counted by: `standardNC` and its like."""
        letters = self.name.removeprefix("Standard_")
        return f"standard{letters[: 2 if letters[1:2].isalpha() else 1]}Family"


_SIZES = (
    Size("Standard_DS3_v2", 4, 14),
    Size("Standard_D12_v2", 4, 28),
    Size("Standard_DS12_v2", 4, 28),
    Size("Standard_D4as_v4", 4, 16),
    Size("Standard_E4s_v3", 4, 32),
    Size("Standard_NC4as_T4_v3", 4, 28, 1, 16),
    Size("Standard_NC8as_T4_v3", 8, 56, 1, 16),
    Size("Standard_NC16as_T4_v3", 16, 110, 1, 16),
    Size("Standard_NC64as_T4_v3", 64, 440, 4, 64),
    Size("Standard_NC6s_v3", 6, 112, 1, 16),
    Size("Standard_NC12s_v3", 12, 224, 2, 32),
    Size("Standard_NC24s_v3", 24, 448, 4, 64),
    Size("Standard_NC24rs_v3", 24, 448, 4, 64),
    Size("Standard_NC24ads_A100_v4", 24, 220, 1, 80),
    Size("Standard_NC48ads_A100_v4", 48, 440, 2, 160),
    Size("Standard_NC96ads_A100_v4", 96, 880, 4, 320),
    Size("Standard_NC40ads_H100_v5", 40, 320, 1, 94),
    Size("Standard_NC80adis_H100_v5", 80, 640, 2, 188),
    Size("Standard_ND40rs_v2", 40, 672, 8, 256),
    Size("Standard_ND96asr_v4", 96, 900, 8, 320),
    Size("Standard_ND96amsr_A100_v4", 96, 1900, 8, 640),
    Size("Standard_ND96isr_H100_v5", 96, 1900, 8, 640),
)
SIZES = {size.name.lower(): size for size in _SIZES}
"""By name in lower case: the service does not mind the case."""


def fits(entry: ModelEntry, size: Size) -> bool:
    """Whether a machine has what the registry asks for to tune the model."""
    cpus, gpus, memory, gpu_memory = _minimum(entry)
    return (
        size.cpus >= cpus
        and size.gpus >= gpus
        and size.memory >= memory
        and size.gpu_memory >= gpu_memory
    )


def may_tune(entry: ModelEntry, size: Size) -> bool:
    """Whether the registry lists the machine for the model, or it is large enough and has a GPU."""
    listed = size.name.lower() in {name.lower() for name in entry.finetune_skus}
    return listed or (size.gpus > 0 and fits(entry, size))


def in_words(size: Size) -> str:
    return (
        f"{size.cpus} vCPUs, {size.memory} GB, {size.gpus} GPUs with {size.gpu_memory} GB together"
    )


def needs(entry: ModelEntry) -> str:
    """What a model needs, in the same words."""
    cpus, gpus, memory, gpu_memory = _minimum(entry)
    return in_words(Size("", cpus, memory, gpus, gpu_memory))


def unsuitable(entry: ModelEntry, names: Sequence[str]) -> str | None:
    """Why none of the sizes can tune the model, or None. A size that is not known here may.

    Args:
        entry: the model.
        names: what a job's `resources.instance_types` lists; one that fits is enough.
    """
    known = [SIZES.get(name.lower()) for name in names]
    if not names or any(size is None or may_tune(entry, size) for size in known):
        return None
    allowed = ", ".join(entry.finetune_skus) or "any size with a GPU"
    return (
        f"None of the instance types {', '.join(names)} can fine-tune {entry.name}, which needs "
        f"{needs(entry)}. Allowed: {allowed}."
    )


def _minimum(entry: ModelEntry) -> tuple[int, int, int, int]:
    """vCPUs, GPUs, GB, GB on the GPUs. Where the registry says nothing, a GPU is needed."""
    cpus, gpus, memory, gpu_memory = map(int, (entry.minimum_sku or "0|1|0|0").split("|"))
    return cpus, gpus, memory, gpu_memory
