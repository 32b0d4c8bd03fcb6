"""The head and the loss, where a token is trained and nowhere else, a few rows at a time.

The logits of a chunk become their own gradient where they lie: those of all rows never exist at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_BYTES = 32 * 2**20
"""Of logits: large enough for the product to be quick, small beside everything else."""


def loss(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss in nats, and how many targets are the likeliest token.

    Args:
        hidden: [answers, hidden], after the last norm.
        head: [vocabulary, hidden]; frozen.
        targets: [answers].
    """
    total, right = _Loss.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return total, right


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        size = max(1, _CHUNK_BYTES // (head.shape[0] * head.itemsize))
        logits = hidden.new_empty(min(size, len(hidden)), len(head))
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total, right = hidden.new_zeros(()), torch.zeros((), dtype=torch.long)
        for first in range(0, len(hidden), size):
            rows = slice(first, first + size)
            wanted = targets[rows, None]
            chunk = torch.mm(hidden[rows], head.t(), out=logits[: len(wanted)])
            top, said = chunk.amax(-1, keepdim=True), chunk.gather(1, wanted)  # [chunk, 1]
            shares = torch.softmax(chunk, -1, out=chunk)
            # log Σ exp = the largest logit - the log of its share, which is never too small for it.
            total += (top - said).sub_(shares.amax(-1, keepdim=True).log_()).sum()
            right += (said == top).sum()
            if grad is not None:
                shares.scatter_add_(1, wanted, torch.full_like(said, -1.0))
                torch.mm(shares, head, out=grad[rows])
        ctx.mark_non_differentiable(right)
        ctx.save_for_backward(grad)
        return total, right

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad.mul(grads[0]), None, None
