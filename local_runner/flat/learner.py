"""Losses and gradients of rows, by as many workers as there are threads.

Each worker reads its rows in passes of its own; what they find is added up in the same order every time,
so that the same rows, threads and weights give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from local_runner.flat.rows import lay, passes, share

if TYPE_CHECKING:
    from torch import Tensor

    from local_runner.data import Example
    from local_runner.flat.phi3 import Phi3
    from maas_client.spec.memory import Thrift

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Seen:
    """What reading rows gave."""

    loss: float
    """Summed over the trained tokens, in nats."""
    right: int
    """Trained tokens that are the likeliest."""
    grads: Sequence[Tensor] = ()
    """Of the loss's mean over the step, by trained weight."""


class Learner:
    """A model whose rows lie end to end."""

    def __init__(self, model: Phi3, *, threads: int, dropout: bool, thrift: Thrift) -> None:
        self._model, self._threads, self._dropout = model, threads, dropout
        self._workers, self._pass_tokens = thrift.workers, thrift.pass_tokens
        self._weights = [weight for each in model.projections for weight in each.trained]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="flat")

    def learn(self, batches: Sequence[Sequence[Example]], answers: int) -> tuple[float, int]:
        """Leave the gradient of a step's mean loss in its weights.

        Args:
            batches: the step's rows; how they are parted does not matter here.
            answers: trained tokens of the step.

        Returns:
            The mean loss, and how many trained tokens are the likeliest.
        """
        rows = [row for batch in batches for row in batch]
        # Drawn from the one source whose state a checkpoint holds.
        seed = int(torch.randint(2**48, ())) if self._dropout else None
        hands, width = share(rows, self._threads, self._model.cost, most=self._workers)

        def work(place: int) -> Seen:
            dice = None if seed is None else torch.Generator().manual_seed(seed + place)
            return self._learn(hands[place], answers, dice)

        seen = self._work(work, range(len(hands)), rows, width)
        for weight, *grads in zip(self._weights, *(each.grads for each in seen), strict=True):
            weight.grad = grads[0]
            for more in grads[1:]:
                weight.grad.add_(more)
        return sum(each.loss for each in seen) / answers, sum(each.right for each in seen)

    def measure(self, rows: Sequence[Example], *, batch: int) -> tuple[float, float]:
        """The mean loss, and the share of the trained tokens that are the likeliest.

        `batch` does not matter here: a row's result does not depend on its neighbours.
        """
        hands, width = share(rows, self._threads, self._model.cost, most=self._workers)
        seen = self._work(self._measure, hands, rows, width)
        answers = sum(sum(row.trained[1:]) for row in rows)
        return sum(each.loss for each in seen) / answers, sum(each.right for each in seen) / answers

    def _learn(self, rows: Sequence[Example], answers: int, dice: Any) -> Seen:
        loss, right, grads = 0.0, 0, []  # type: float, int, list[Tensor]
        for rows_of_pass in passes(rows, self._pass_tokens):
            total, found = self._model.loss(lay(rows_of_pass), dice)
            made = torch.autograd.grad(total / answers, self._weights)
            grads = (
                [one.add_(more) for one, more in zip(grads, made, strict=True)]
                if grads
                else list(made)
            )
            loss += total.item()
            right += int(found)
        return Seen(loss, right, grads)

    @torch.no_grad()
    def _measure(self, rows: Sequence[Example]) -> Seen:
        loss, right = 0.0, 0
        for rows_of_pass in passes(rows, self._pass_tokens):
            total, found = self._model.loss(lay(rows_of_pass), None)
            loss += total.item()
            right += int(found)
        return Seen(loss, right)

    def _work(
        self,
        work: Callable[[_Given], _Made],
        given: Sequence[_Given],
        rows: Sequence[Example],
        width: int,
    ) -> list[_Made]:
        """Have the workers do it, each with so many threads, once the weights are up to date."""
        self._model.reach(max(len(row.ids) for row in rows))
        before = torch.get_num_threads()
        torch.set_num_threads(width)
        try:
            # One worker is the caller's own thread, whose helpers torch already has.
            spread = self._pool.map if len(given) > 1 else map
            list(spread(lambda projection: projection.refresh(), self._model.projections))
            return list(spread(work, given))
        finally:
            torch.set_num_threads(before)
