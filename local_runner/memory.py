"""Going on when memory runs out: the same rows in smaller forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from local_runner.data import Example

Batches = list[list["Example"]]
_Made = TypeVar("_Made")


_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc")
"""What torch, the system and C++ say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that is not there."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def within(
    work: Callable[[Batches], _Made], batches: Batches, *, halvings: int, forget: Callable[[], None]
) -> tuple[_Made, int]:
    """Do the work on all rows, in passes as large as there is memory for.

    Args:
        work: on the passes of a step; its result does not depend on how the rows are parted.
        batches: the passes that the job names.
        halvings: how often they have been halved before.
        forget: takes back what a pass has left that broke off.

    Returns:
        What was made, and how often the passes are halved now.

    Raises:
        Exception: of `work`, where a single row is too much or memory is not why.
    """
    dice = torch.get_rng_state()
    while True:
        parted = halved(batches, halvings)
        try:
            return work(parted), halvings
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or max(map(len, parted)) == 1:
                raise
        halvings += 1
        forget()
        torch.set_rng_state(dice)


def halved(batches: Batches, times: int) -> Batches:
    """The same rows in smaller passes, each halved so often."""
    for _ in range(times):
        halves = [(rows[: (len(rows) + 1) // 2], rows[(len(rows) + 1) // 2 :]) for rows in batches]
        batches = [half for pair in halves for half in pair if half]
    return batches
