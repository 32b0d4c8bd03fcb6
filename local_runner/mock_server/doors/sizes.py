"""Whether the service has a size of machine, and takes it for a model: refused in its words."""

from __future__ import annotations

from collections.abc import Sequence

from local_runner.mock_server.errors import ServiceError, user_error
from maas_client.spec.catalog import ModelEntry
from maas_client.spec.sizes import SIZES, Size, fits, in_words, may_tune, needs


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
    if not fits(entry, size):
        raise user_error(
            f"{size.name} is too small to fine-tune {entry.name}: it has {in_words(size)}, and the "
            f"model needs {needs(entry)}. Use one of {', '.join(entry.finetune_skus)}.",
            inner="InsufficientComputeResources",
        )


def check_types(entry: ModelEntry, names: Sequence[str], region: str) -> None:
    """Whether a model can be tuned on one of the sizes; the others are for the steps beside it.

    Raises:
        ServiceError: a size is unknown, or the model fits on none of them.
    """
    sizes = [find_size(name, region) for name in names]
    if not any(may_tune(entry, size) for size in sizes):
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
