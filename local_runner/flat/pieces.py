"""What stands between the products: RMSNorm and SwiGLU, in few passes over memory.

No weight of these is trained, so no gradient of one is ever made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight. x: [tokens, hidden]."""
    made: Tensor = _Norm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return made


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) · up. x: [tokens, 2 · inner], gate before up -> [tokens, inner]."""
    made: Tensor = _SwiGlu.apply(x)  # type: ignore[no-untyped-call]
    return made


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # [tokens, 1]
        inverse: Tensor = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        inner = grads[0] * weight  # [tokens, hidden]
        along = torch.linalg.vecdot(inner, x)[:, None]  # [tokens, 1]
        along.mul_(inverse**3).div_(-x.shape[-1])
        return inner.mul_(inverse).addcmul_(x, along), None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,), (x,) = grads, ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        made = torch.empty_like(x)
        gate_grad, up_grad = made.chunk(2, -1)
        torch.mul(functional.silu(gate), grad, out=up_grad)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=gate_grad)
        return made
