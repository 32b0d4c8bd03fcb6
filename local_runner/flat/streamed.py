"""A projection whose matrix is made as it is needed, from weights that stay in their file.

Weights stored in 16 bits are exact in 32, so what is computed is what `Merged` computes, bit for bit; it
holds one matrix at a time in place of all of them, and makes each twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from local_runner.flat.projections import adapter_grads

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Streamed:
    """x · (W + scale · B · A)ᵀ, or x · Wᵀ where there is no adapter."""

    keeps_output = False

    def __init__(
        self, base: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, scale: float = 0.0
    ) -> None:
        """base: [out, in] of any kind of float, a: [rank, in], b: [out, rank]."""
        self._base, self._a, self._b, self._scale = base, a, b, scale
        self.trained = () if a is None or b is None else (a, b)

    def refresh(self) -> None:
        """Nothing is kept, so nothing grows old."""

    def __call__(self, x: Tensor, dice: Generator | None) -> Tensor:
        made: Tensor = _Streamed.apply(x, self._base, self._a, self._b, self._scale)  # type: ignore[no-untyped-call]
        return made


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands them over by position
        ctx: Any, x: Tensor, base: Tensor, a: Tensor | None, b: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, base, a, b)
        ctx.scale = scale
        return x @ _whole(base, a, b, scale).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, base, a, b = ctx.saved_tensors
        # Nobody asks for the first layer's: its input is an embedding, which is frozen.
        x_grad = grad @ _whole(base, a, b, ctx.scale) if ctx.needs_input_grad[0] else None
        if a is None:
            return x_grad, None, None, None, None
        a_grad, b_grad = adapter_grads(x, grad, a, b * ctx.scale)
        return x_grad, None, a_grad, b_grad.mul_(ctx.scale), None


def _whole(base: Tensor, a: Tensor | None, b: Tensor | None, scale: float) -> Tensor:
    """The matrix in fp32, with its adapter in it."""
    if a is None or b is None:
        return base.float()
    if base.dtype is torch.float32:  # mapped from its file: never written to
        return torch.addmm(base, b, a, alpha=scale)
    return base.float().addmm_(b, a, alpha=scale)
