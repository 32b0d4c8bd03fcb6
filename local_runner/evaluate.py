"""The loss on rows: mean over the tokens that are trained, the same code before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from local_runner.flat.opening import open_learner
from local_runner.methods.prompts import hidden_states

if TYPE_CHECKING:
    from local_runner.data import Example


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows side by side, padded on the right."""

    ids: torch.Tensor
    """[rows, longest]"""
    real: torch.Tensor
    """[rows, longest], 1 where there is a token."""
    trained: torch.Tensor
    """[rows, longest], True where the prediction of the token counts."""


def pad(rows: Sequence[Example], pad_id: int) -> Batch:
    """Lay rows side by side."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    real = torch.zeros((len(rows), longest), dtype=torch.long)
    trained = torch.zeros((len(rows), longest), dtype=torch.bool)
    for place, row in enumerate(rows):
        length = len(row.ids)
        ids[place, :length] = torch.tensor(row.ids)
        real[place, :length] = 1
        trained[place, :length] = torch.tensor(row.trained)
    return Batch(ids, real, trained)


def answer_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits where a trained token is predicted, and those tokens.

    The head is the largest product of a small model: it is taken only where the loss looks.

    Returns:
        [answers, vocabulary] in fp32, and [answers].
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = bool(batch.real.all())  # no padding: plain causal attention, the faster kernel
    hidden = hidden_states(model, batch.ids, None if whole else batch.real)
    # The token at position t is predicted by the hidden state at t - 1.
    wanted = batch.trained[:, 1:]
    return inner.lm_head(hidden[:, :-1][wanted]).float(), batch.ids[:, 1:][wanted]


def mean_loss(model: Any, rows: Sequence[Example], *, pad_id: int, batch: int = 1) -> float:
    """Mean loss in nats over every trained token of the rows."""
    return measure(model, rows, pad_id=pad_id, batch=batch)[0]


@torch.no_grad()
def measure(
    model: Any, rows: Sequence[Example], *, pad_id: int, batch: int = 1
) -> tuple[float, float]:
    """The mean loss, and the share of the trained tokens that the model would have chosen itself."""
    flat = open_learner(model, threads=torch.get_num_threads())
    if flat is not None:
        return flat.measure(rows, batch=batch)
    return measure_padded(model, rows, pad_id=pad_id, batch=batch)


@torch.no_grad()
def measure_padded(
    model: Any, rows: Sequence[Example], *, pad_id: int, batch: int
) -> tuple[float, float]:
    """The same, for a model that rows end to end do not serve."""
    model.eval()
    total, right, tokens = 0.0, 0, 0
    for start in range(0, len(rows), batch):
        logits, targets = answer_logits(model, pad(rows[start : start + batch], pad_id))
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        right += int((logits.argmax(-1) == targets).sum())
        tokens += len(targets)
    return total / tokens, right / tokens
