"""The sizes of Azure's machines that fine-tuning is about, and which of them a model fits on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from local_runner.mock_server.errors import ServiceError, user_error
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


def find_size(name: str, region: str) -> Size:
    """The size of that name; case does not matter, as on the service.

    Raises:
        ServiceError: there is none.
    """
    size = SIZES.get(name.lower())
    if size is None:
        raise user_error(
            f"The VM size {name!r} is not available in {region}. List the sizes that are.",
            inner="VmSizeNotSupported",
        )
    return size


def check_size(entry: ModelEntry, size: Size) -> None:
    """Whether a model can be tuned on a machine.

    Raises:
        ServiceError: the machine is too small for it.
    """
    if not _fits(entry, size):
        raise user_error(
            f"{size.name} is too small to fine-tune {entry.name}: it has {_words(size)}, and the "
            f"model needs {_needs(entry)}. Use one of {', '.join(entry.finetune_skus)}.",
            inner="InsufficientComputeResources",
        )


def check_types(entry: ModelEntry, names: Sequence[str], region: str) -> None:
    """Whether a model can be tuned on one of the sizes; the others are for the steps beside it.

    Raises:
        ServiceError: a size is unknown, or the model fits on none of them.
    """
    sizes = [find_size(name, region) for name in names]
    if not any(_allowed(entry, size) for size in sizes):
        raise user_error(
            f"None of the instance types {', '.join(names)} can fine-tune {entry.name}. "
            f"Allowed: {', '.join(entry.finetune_skus) or 'any size with a GPU'}.",
            inner="InstanceTypeNotSupported",
        )


def check_deployment(allowed: Sequence[str], model: str, name: str) -> None:
    """Whether a model can be served on a size; a size that nobody knows is taken.

    Raises:
        ServiceError: the size is known, and not among those that the model is served on.
    """
    known = name.lower() in SIZES and allowed
    if known and name.lower() not in {entry.lower() for entry in allowed}:
        raise ServiceError(
            400,
            "UserError",
            f"The instance type {name} is not supported for {model}. "
            f"Allowed: {', '.join(allowed)}.",
            inner="InstanceTypeNotSupported",
        )


def _allowed(entry: ModelEntry, size: Size) -> bool:
    listed = size.name.lower() in {name.lower() for name in entry.finetune_skus}
    return listed or (size.gpus > 0 and _fits(entry, size))


def _fits(entry: ModelEntry, size: Size) -> bool:
    cpus, gpus, memory, gpu_memory = _minimum(entry)
    return (
        size.cpus >= cpus
        and size.gpus >= gpus
        and size.memory >= memory
        and size.gpu_memory >= gpu_memory
    )


def _minimum(entry: ModelEntry) -> tuple[int, int, int, int]:
    """vCPUs, GPUs, GB, GB on the GPUs. Where the registry says nothing, a GPU is needed."""
    cpus, gpus, memory, gpu_memory = map(int, (entry.minimum_sku or "0|1|0|0").split("|"))
    return cpus, gpus, memory, gpu_memory


def _needs(entry: ModelEntry) -> str:
    return _words(Size("", *(_minimum(entry)[place] for place in (0, 2, 1, 3))))


def _words(size: Size) -> str:
    return (
        f"{size.cpus} vCPUs, {size.memory} GB, {size.gpus} GPUs with {size.gpu_memory} GB together"
    )
