"""The projections: a frozen matrix, with its adapter merged into it or beside it.

Merged, an adapted projection costs what the frozen one does: one product forward and one back. The
adapter's gradients come from what goes into the layer and the gradient of what comes out; a gradient of
the whole matrix is never made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor


class Projection(Protocol):
    """y = x · Wᵀ and more. x: [tokens, in] -> [tokens, out]."""

    @property
    def keeps_output(self) -> bool:
        """Whether its gradient needs what it returned as it was."""

    @property
    def trained(self) -> Sequence[Tensor]:
        """The adapter's weights."""

    def refresh(self) -> None:
        """Take up the adapter's weights as they are now."""

    def __call__(self, x: Tensor, dice: Generator | None) -> Tensor: ...


class Frozen:
    """A projection without an adapter."""

    keeps_output = False
    trained = ()

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def refresh(self) -> None:
        pass

    def __call__(self, x: Tensor, dice: Generator | None) -> Tensor:
        return x @ self.weight.t()


class Merged:
    """LoRA and DoRA: W + scale · B · A is made once for each state of the adapter."""

    def __init__(
        self, base: Tensor, a: Tensor, b: Tensor, *, scale: float, magnitude: Tensor | None = None
    ) -> None:
        """base: [out, in], a: [rank, in], b: [out, rank]; magnitude: [out], DoRA's."""
        self._base, self._scale = base, scale
        self._a, self._b, self._magnitude = a, b, magnitude
        self.trained = (a, b) if magnitude is None else (a, b, magnitude)
        self.keeps_output = magnitude is not None
        self._weight = torch.empty_like(base)
        self._share: Tensor = torch.full((len(base), 1), scale)
        """Of B in the merged matrix, by row: [out, 1]."""

    @torch.no_grad()
    def refresh(self) -> None:
        torch.addmm(self._base, self._b, self._a, alpha=self._scale, out=self._weight)
        if self._magnitude is not None:
            # The norm is taken as given, as DoRA's paper has it: no gradient goes through it.
            norm = torch.linalg.vector_norm(self._weight, dim=1, keepdim=True)
            rate = self._magnitude[:, None] / norm
            self._weight.mul_(rate)
            self._share = rate.mul_(self._scale)

    def __call__(self, x: Tensor, dice: Generator | None) -> Tensor:
        made: Tensor = _Merged.apply(  # type: ignore[no-untyped-call]
            x, self._weight, self._share, self._a, self._b, self._magnitude
        )
        return made


class Beside:
    """LoRA with dropout: what goes into the adapter is not what goes into the frozen matrix."""

    keeps_output = False

    def __init__(self, base: Tensor, a: Tensor, b: Tensor, *, scale: float, dropout: float) -> None:
        self._base, self._a, self._b, self._scale, self._dropout = base, a, b, scale, dropout
        self.trained = (a, b)

    def refresh(self) -> None:
        pass

    def __call__(self, x: Tensor, dice: Generator | None) -> Tensor:
        kept = None
        if dice is not None:
            kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(
                1 - self._dropout, generator=dice
            )
        made: Tensor = _Beside.apply(  # type: ignore[no-untyped-call]
            x, kept, self._base, self._a, self._b, self._scale, 1 / (1 - self._dropout)
        )
        return made


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands them over by position
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        share: Tensor,
        a: Tensor,
        b: Tensor,
        magnitude: Tensor | None,
    ) -> Tensor:
        out = x @ weight.t()
        ctx.save_for_backward(
            x, weight, share, a, b, *([] if magnitude is None else [magnitude, out])
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, share, a, b, *dora = ctx.saved_tensors
        # The first layer's input is an embedding, which is frozen: nobody asks for its gradient.
        x_grad = grad @ weight if ctx.needs_input_grad[0] else None  # [tokens, in]
        a_grad, b_grad = adapter_grads(x, grad, a, b * share)
        b_grad.mul_(share)
        if not dora:
            return x_grad, None, None, a_grad, b_grad, None
        magnitude, out = dora
        return x_grad, None, None, a_grad, b_grad, (grad * out).sum(0).div_(magnitude)


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands them over by position
        ctx: Any,
        x: Tensor,
        kept: Tensor | None,
        weight: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        louder: float,
    ) -> Tensor:
        ctx.save_for_backward(x, kept, weight, a, b)
        ctx.scale, ctx.louder = scale, louder
        low = (x if kept is None else (x * kept).mul_(louder)) @ a.t()  # [tokens, rank]
        return (x @ weight.t()).addmm_(low, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, kept, weight, a, b = ctx.saved_tensors
        scaled = b * ctx.scale
        heard = x if kept is None else (x * kept).mul_(ctx.louder)
        a_grad, b_grad = adapter_grads(heard, grad, a, scaled)
        x_grad = None
        if ctx.needs_input_grad[0]:
            through = (grad @ scaled) @ a
            if kept is not None:
                through.mul_(kept).mul_(ctx.louder)
            x_grad = through.addmm_(grad, weight)
        return x_grad, None, None, a_grad, b_grad.mul_(ctx.scale), None, None


def adapter_grads(x: Tensor, grad: Tensor, a: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor]:
    """A's gradient, [rank, in], and B's before its scale, [out, rank]."""
    low_grad = grad @ scaled  # [tokens, rank]
    low = x @ a.t()  # [tokens, rank]
    # In this order the long side lies in memory as the product wants it: six times faster.
    b_grad = (low.t() @ grad).t()
    return low_grad.t() @ x, b_grad.contiguous()  # the optimizer's kernel reads it as it lies
