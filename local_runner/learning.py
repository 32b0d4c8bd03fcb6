"""How a model learns from rows: end to end where that is the same model, else as peft has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from local_runner import fused
from local_runner.evaluate import answer_logits, measure_padded, pad
from local_runner.flat.opening import open_learner as open_flat

if TYPE_CHECKING:
    from local_runner.data import Example
    from maas_client.spec.memory import Thrift


class Learner(Protocol):
    """What an optimizer step and an evaluation ask of a model."""

    def learn(self, batches: Sequence[Sequence[Example]], answers: int) -> tuple[float, int]:
        """Leave the gradient of a step's mean loss in the adapter's weights.

        Args:
            batches: the step's rows, in the forward passes that the job names.
            answers: trained tokens of the step.

        Returns:
            The mean loss in nats, and how many trained tokens are the likeliest.
        """

    def measure(self, rows: Sequence[Example], *, batch: int) -> tuple[float, float]:
        """The mean loss, and the share of the trained tokens that are the likeliest."""


def open_learner(model: Any, *, pad_id: int, thrift: Thrift | None = None) -> Learner:
    """The quickest way to train this model with this adapter; the losses are the same."""
    flat = open_flat(model, threads=torch.get_num_threads(), thrift=thrift)
    if flat is not None:
        return flat
    fused.fuse(model)
    return Padded(model, pad_id)


class Padded:
    """Rows side by side, through the model as transformers and peft have it."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id

    def learn(self, batches: Sequence[Sequence[Example]], answers: int) -> tuple[float, int]:
        self._model.train()
        total, right = 0.0, 0
        for batch in batches:
            logits, targets = answer_logits(self._model, pad(batch, self._pad_id))
            # Mean over answer tokens in the whole step, not mean of micro-batch means:
            # short answers would otherwise weigh more.
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / answers
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            right += int((logits.detach().argmax(-1) == targets).sum())
        return total, right

    def measure(self, rows: Sequence[Example], *, batch: int) -> tuple[float, float]:
        return measure_padded(self._model, rows, pad_id=self._pad_id, batch=batch)
