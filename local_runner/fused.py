"""LoRA's layer as one function with its own gradient: what peft computes, in fewer passes.

A step of a small model on a CPU is short, and peft's five operations a layer, each with its node in
the autograd graph, are a tenth of it. The result is peft's, but for the order of some sums.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor


def fuse(model: PeftModel) -> None:
    """Give every LoRA layer that has no dropout the fused forward pass; the others stay as they are."""
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if isinstance(layer, Linear) and _is_plain(layer):
            layer.forward = partial(_forward, layer)


def _is_plain(layer: Any) -> bool:
    """Whether it is base + scale · B · A and nothing else."""
    dropout = layer.lora_dropout["default"]
    return (
        isinstance(dropout, torch.nn.Identity)
        and layer.base_layer.bias is None
        and layer.base_layer.weight.dtype is torch.float32
        and layer.lora_B["default"].bias is None
        and not layer.use_dora["default"]
    )


def _forward(layer: Any, x: Tensor) -> Tensor:
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    w, scale = layer.base_layer.weight, layer.scaling["default"]
    made: Tensor = _Lora.apply(x, w, a, b, scale)  # type: ignore[no-untyped-call]
    return made


class _Lora(torch.autograd.Function):
    """x·Wᵀ + scale·(x·Aᵀ)·Bᵀ. W is frozen: no gradient of it is ever made."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands them over by position
        ctx: Any, x: Tensor, w: Tensor, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """x: [batch, seq, in], w: [out, in], a: [rank, in], b: [out, rank] -> [batch, seq, out]."""
        flat = x.reshape(-1, x.shape[-1])  # [tokens, in]
        low = flat @ a.t()  # [tokens, rank]
        out = (flat @ w.t()).addmm_(low, b.t(), alpha=scale)  # [tokens, out]
        ctx.save_for_backward(flat, w, a, b, low)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        flat, w, a, b, low = ctx.saved_tensors
        flat_grad = grad.reshape(-1, grad.shape[-1])  # [tokens, out]
        low_grad = (flat_grad @ b).mul_(ctx.scale)  # [tokens, rank]
        x_grad = None
        if ctx.needs_input_grad[0]:  # the first layer's input is an embedding, which is frozen
            x_grad = (flat_grad @ w).addmm_(low_grad, a).view(*grad.shape[:-1], -1)
        a_grad = low_grad.t() @ flat  # [rank, in]
        # In this order the long side lies in memory as the product wants it: six times faster.
        b_grad = (low.t() @ flat_grad).mul_(ctx.scale).t()  # [out, rank]
        return x_grad, None, a_grad, b_grad, None
