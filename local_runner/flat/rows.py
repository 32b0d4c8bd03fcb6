"""Rows of a step laid end to end, and who of the workers takes which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from local_runner.data import Example

Rows = Sequence["Example"]

_MORE_THREADS = 0.85
"""What a second thread on one worker's products is worth, beside a second worker: 2 ** 0.85 = 1.8."""

_WORTH_SHARING = 5e7
"""Multiplications of a step: a thread does them in a millisecond or two."""


@dataclass(frozen=True, slots=True)
class Flat:
    """Rows end to end, without padding."""

    ids: Tensor
    """[tokens]"""
    spans: tuple[tuple[int, int], ...]
    """Each row's first token, and the one after its last."""
    asked: Tensor
    """[answers]: the tokens from which a trained token is predicted."""
    targets: Tensor
    """[answers]: the trained tokens."""


def lay(rows: Rows) -> Flat:
    """Lay rows end to end."""
    ends = list(accumulate(len(row.ids) for row in rows))
    spans = tuple(zip([0, *ends], ends, strict=False))
    ids = torch.tensor([token for row in rows for token in row.ids])
    # The token at a place is predicted by the one before it; a row's first is predicted by nobody.
    trained = [(*row.trained[1:], False) for row in rows]
    asked = torch.tensor([flag for row in trained for flag in row]).nonzero()[:, 0]
    return Flat(ids, spans, asked, ids[asked + 1])


def deal(rows: Rows, workers: int, cost: Callable[[Example], float]) -> list[list[Example]]:
    """The rows of each worker: the dearest row first, to whom has least. The same for the same rows."""
    loads, hands = [0.0] * workers, [[] for _ in range(workers)]  # type: list[float], list[list[int]]
    for place in sorted(range(len(rows)), key=lambda place: (-cost(rows[place]), place)):
        least = loads.index(min(loads))
        loads[least] += cost(rows[place])
        hands[least].append(place)
    return [[rows[place] for place in sorted(hand)] for hand in hands if hand]


def share(
    rows: Rows, threads: int, cost: Callable[[Example], float], *, most: int | None = None
) -> tuple[list[list[Example]], int]:
    """The rows of each worker, and the threads that each worker's products take.

    A worker for each thread wastes nothing on threads that wait for one another, as long as there are
    rows enough for all of them. `cost` is in multiplications; few of them are done before others wake.
    There are never more workers than `most`.
    """
    if sum(map(cost, rows)) < _WORTH_SHARING:
        return [list(rows)], 1
    best: tuple[float, list[list[Example]], int] | None = None
    for workers in range(min(threads, most or threads), 0, -1):
        if threads % workers:
            continue
        hands, width = deal(rows, workers, cost), threads // workers
        longest = max(sum(map(cost, hand)) for hand in hands) / width**_MORE_THREADS
        if best is None or longest < best[0]:
            best = (longest, hands, width)
    assert best is not None  # noqa: S101 - one worker is always tried
    return best[1], best[2]


def passes(rows: Rows, tokens: int) -> list[list[Example]]:
    """Rows in order, in passes of up to so many tokens; a longer row has one of its own."""
    made: list[list[Example]] = []
    held = 0
    for row in rows:
        if not made or held + len(row.ids) > tokens:
            made.append([])
            held = 0
        made[-1].append(row)
        held += len(row.ids)
    return made
