"""Causal attention of rows that lie end to end: each row looks at itself, through a window if there is one.

The kernel is torch's own flash attention for CPUs. The keys of a group are shared by its queries, and
are not repeated in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - its backward has no other name
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001

_LONGEST_BLOCK = 1024
"""Queries that look through a window, at once: their mask is this times the window and itself."""


@dataclass(frozen=True, slots=True)
class Heads:
    """How the features of queries, keys and values lie: all queries, then the groups' keys and values."""

    queries: int
    groups: int
    size: int
    window: int | None
    """How many places a query sees, itself included."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The rotation of each token's place, [tokens, 1, rotated / 2]; what a head has beyond is not turned."""

    cos: Tensor
    sin: Tensor


def attend(
    qkv: Tensor, spans: Sequence[tuple[int, int]], turn: Turn, heads: Heads, *, in_place: bool
) -> Tensor:
    """Turned queries and keys, and what the queries see.

    Args:
        qkv: [tokens, (queries + 2 · groups) · size].
        spans: the rows' first tokens and those after their last.
        turn: the rotation.
        heads: their layout.
        in_place: whether `qkv` is the caller's no more, and is turned where it lies.

    Returns:
        [tokens, queries · size].
    """
    made: Tensor = _Attention.apply(qkv, spans, turn, heads, in_place)  # type: ignore[no-untyped-call]
    return made


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands them over by position
        ctx: Any,
        qkv: Tensor,
        spans: Sequence[tuple[int, int]],
        turn: Turn,
        heads: Heads,
        in_place: bool,  # noqa: FBT001
    ) -> Tensor:
        qkv = qkv.detach() if in_place else qkv.clone()
        _rotate(qkv, turn.cos, turn.sin, heads)
        out = qkv.new_empty(len(qkv), heads.queries * heads.size)
        sums = []  # of the softmax, in logarithms: [groups, queries a group, block]
        for block, seen, mask in _blocks(spans, heads.window):
            query, key, value = _views(qkv, block, seen, heads)
            made, log_sum = _flash(query, key, value, 0.0, mask is None, attn_mask=mask)
            _grouped(out[block], heads.groups, heads.size).copy_(made)
            sums.append(log_sum)
        ctx.save_for_backward(qkv, out, *sums)
        ctx.spans, ctx.turn, ctx.heads = spans, turn, heads
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, *sums = ctx.saved_tensors
        heads: Heads = ctx.heads
        # Blocks of one row look at the same keys: their gradients add up.
        overlap = heads.window is not None
        made = torch.zeros_like(qkv) if overlap else torch.empty_like(qkv)
        blocks = _blocks(ctx.spans, heads.window)
        for (block, seen, mask), log_sum in zip(blocks, sums, strict=True):
            query, key, value = _views(qkv, block, seen, heads)
            parts = _flash_backward(
                _grouped(grads[0][block], heads.groups, heads.size),
                query,
                key,
                value,
                _grouped(out[block], heads.groups, heads.size),
                log_sum,
                0.0,
                mask is None,
                attn_mask=mask,
            )
            spots = _views(made, block, seen, heads)
            spots[0].copy_(parts[0])
            for spot, part in zip(spots[1:], parts[1:], strict=True):
                whole = part.sum(1) if part.shape[1] > 1 else part[:, 0]
                spot[:, 0].add_(whole) if overlap else spot[:, 0].copy_(whole)
        _rotate(made, ctx.turn.cos, -ctx.turn.sin, heads)
        return made, None, None, None, None


def _blocks(
    spans: Sequence[tuple[int, int]], window: int | None
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Queries, the keys that they see, and the mask where plain causality does not say it all."""
    for start, end in spans:
        if window is None or end - start <= window:
            yield slice(start, end), slice(start, end), None
            continue
        step = min(window, _LONGEST_BLOCK)
        for first in range(start, end, step):
            last = min(first + step, end)
            begin = max(start, first - window + 1)
            behind = torch.arange(first, last)[:, None] - torch.arange(begin, last)
            seen = (behind >= 0) & (behind < window)
            mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
            yield slice(first, last), slice(begin, last), mask


def _views(qkv: Tensor, block: slice, seen: slice, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """[groups, queries a group, tokens, size], thrice; keys and values stand once for their group."""
    wide, narrow = heads.queries * heads.size, heads.groups * heads.size
    query, key, value = torch.split(qkv, [wide, narrow, narrow], 1)
    shared = heads.queries // heads.groups
    return (
        _grouped(query[block], heads.groups, heads.size),
        _grouped(key[seen], heads.groups, heads.size).expand(-1, shared, -1, -1),
        _grouped(value[seen], heads.groups, heads.size).expand(-1, shared, -1, -1),
    )


def _grouped(x: Tensor, groups: int, size: int) -> Tensor:
    """[tokens, features] -> [groups, features a group / size, tokens, size]."""
    return x.view(len(x), groups, -1, size).permute(1, 2, 0, 3)


def _rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> None:
    """Turn queries and keys, in place."""
    half = cos.shape[-1]
    turned = qkv.view(len(qkv), -1, heads.size)[:, : heads.queries + heads.groups]
    left, right = turned[..., :half], turned[..., half : 2 * half]
    across = left * sin
    left.mul_(cos).addcmul_(right, sin, value=-1)
    right.mul_(cos).add_(across)
