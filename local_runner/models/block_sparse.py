"""Block-sparse causal attention in plain PyTorch: its time and memory are those of the blocks that are seen.

Tokens lie in blocks. A query sees the blocks just before its own, and of those further back every
`stride`-th; which ones is another choice for each head. Near keys are one slice for all heads, far keys are
gathered once per head, and queries are taken some blocks at a time: no [length, length] square is ever made,
neither on the way forward nor back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_BLOCKS_AT_ONCE = 4
"""Query blocks of one pass: few make many small products, many look at more near keys than they need."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which blocks a query block sees."""

    block: int
    """Tokens."""
    near: int
    """Blocks: the query's own, and those right before it."""
    stride: int
    """Of the blocks further back, every one of this many."""
    heads: int
    same_for_all_heads: bool = False

    @property
    def window(self) -> int:
        """Up to so many tokens everything is near: plain causal attention."""
        return self.block * self.near

    def first_far(self) -> Tensor:
        """The first strided block of each head, [heads]; its others follow a stride apart."""
        step = 0 if self.same_for_all_heads else max(1, self.stride // self.heads)
        return (self.stride - 1 - torch.arange(self.heads) * step) % self.stride


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pattern: Pattern,
    scale: float,
    real: Tensor | None = None,
) -> Tensor:
    """What the last tokens of a text see; its first real token begins the first block.

    Args:
        query: [batch, heads, tokens, size], of the last tokens.
        key: [batch, groups, length, size], of all tokens; a group's heads follow each other.
        value: as `key`.
        pattern: of the heads.
        scale: of the scores.
        real: [batch, length], False where there is padding; None where there is none.

    Returns:
        [batch, heads, tokens, size]; zeros for padding on the left.
    """
    if real is None:
        return _see(query, key, value, pattern, scale)
    # Padding on the right comes after everything, and needs no mask; on the left it would move the blocks.
    starts = real.int().argmax(-1).tolist()
    rows = [
        _row(query[i, None], key[i, None], value[i, None], real[i], start, pattern, scale)
        for i, start in enumerate(starts)
    ]
    return torch.cat(rows)


def _row(  # noqa: PLR0917 - one row of `attend`
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor,
    start: int,
    pattern: Pattern,
    scale: float,
) -> Tensor:
    tokens, length = query.shape[2], key.shape[2]
    padded = max(0, start - (length - tokens))
    kept = real[start:]
    has_holes = bool((kept[1:] & ~kept[:-1]).any())
    seen = _see(
        query[:, :, padded:],
        key[:, :, start:],
        value[:, :, start:],
        pattern,
        scale,
        kept if has_holes else None,
    )
    return torch.nn.functional.pad(seen, (0, 0, padded, 0))


def _see(  # noqa: PLR0917
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    scale: float,
    kept: Tensor | None = None,
) -> Tensor:
    made: Tensor = _Attention.apply(query, key, value, pattern, scale, kept)  # type: ignore[no-untyped-call]
    return made


@dataclass(frozen=True, slots=True)
class _Part:
    """Some queries that follow each other, and their keys."""

    first: int
    """The place of the first query among the queries."""
    end: int
    low: int
    """Near keys are [low, high)."""
    high: int
    far: int
    """How many of each head's far blocks they may see."""
    near_hidden: Tensor
    """[queries, near keys], True where a key is not seen."""
    far_hidden: Tensor
    """[heads, queries, far blocks]"""


class _Layout:
    """The parts of one call, and its far keys."""

    def __init__(self, query: Tensor, key: Tensor, pattern: Pattern, kept: Tensor | None) -> None:
        self.pattern, self.kept, self.device = pattern, kept, query.device
        self.tokens, self.length = query.shape[2], key.shape[2]
        self.groups, self.each = key.shape[1], query.shape[1] // key.shape[1]
        size, last = pattern.block, (self.length - 1) // pattern.block
        self.complete = max(0, last - pattern.near + 1)
        """Blocks that are far from the last query; all of them are whole."""
        count = -(-self.complete // pattern.stride)
        steps = torch.arange(count) * pattern.stride
        self.far_blocks = (pattern.first_far()[:, None] + steps).to(self.device)  # [heads, count]
        # A head may have one fewer than the others: a block that nobody is shown takes its place.
        taken = self.far_blocks.clamp(max=max(0, self.complete - 1))
        group = torch.arange(pattern.heads, device=self.device)[:, None] // self.each
        self._places = (group * self.complete + taken).flatten()  # [heads * count]
        self._far_shape = (pattern.heads, count * size)
        self.far_kept = None if kept is None else self._of_far(kept)

    def _of_far(self, kept: Tensor) -> Tensor:
        """[heads, far blocks, block]: whether a far key is real."""
        blocks = kept[: self.complete * self.pattern.block].view(self.complete, -1)
        return blocks[self.far_blocks.clamp(max=max(0, self.complete - 1))]

    def gather(self, keys: Tensor) -> Tensor:
        """[batch, groups, length, size] -> the far ones, [batch, heads, far, size]."""
        size = self.pattern.block
        blocks = keys[:, :, : self.complete * size].reshape(
            len(keys), self.groups * self.complete, size, keys.shape[-1]
        )
        far = blocks.index_select(1, self._places)
        return far.view(len(keys), *self._far_shape, keys.shape[-1])

    def scatter(self, far: Tensor, keys: Tensor) -> None:
        """Add what `gather` took back to where it was."""
        size = self.pattern.block
        shape = (len(keys), self.groups * self.complete, size, keys.shape[-1])
        blocks = far.new_zeros(shape).index_add_(
            1, self._places, far.view(len(keys), -1, size, keys.shape[-1])
        )
        whole = keys[:, :, : self.complete * size]
        whole += blocks.view(whole.shape)

    def parts(self) -> Iterator[_Part]:
        """All queries, some blocks at a time."""
        size, near = self.pattern.block, self.pattern.near
        wide, offset = size * _BLOCKS_AT_ONCE, self.length - self.tokens
        start = offset
        while start < self.length:
            end = min((start // wide + 1) * wide, self.length)
            low = max(0, (start // size - near + 1) * size)
            at = torch.arange(start, end, device=self.device)[:, None]
            key_at = torch.arange(low, end, device=self.device)
            hidden = (key_at > at) | (key_at // size <= at // size - near)
            if self.kept is not None:
                hidden |= ~self.kept[low:end] & (
                    key_at != at
                )  # a query without keys has no softmax
            far = -(-max(0, (end - 1) // size - near + 1) // self.pattern.stride)
            far_hidden = self.far_blocks[:, None, :far] > at // size - near
            yield _Part(start - offset, end - offset, low, end, far * size, hidden, far_hidden)
            start = end

    def grouped(self, x: Tensor) -> Tensor:
        """[batch, heads, queries, n] -> [batch, groups, heads of a group * queries, n]."""
        return x.reshape(len(x), self.groups, -1, x.shape[-1])

    def scores(self, part: _Part, query: Tensor, key: Tensor, far_key: Tensor) -> Tensor:
        """[batch, heads, queries, near + far keys] in fp32 at least, -inf where nothing is seen."""
        batch, heads, queries = query.shape[:3]
        near = self.grouped(query) @ key[:, :, part.low : part.high].mT
        near = near.view(batch, heads, queries, -1).masked_fill_(part.near_hidden, -torch.inf)
        if not part.far:
            return _wide(near)
        far = (query @ far_key[:, :, : part.far].mT).view(
            batch, heads, queries, -1, self.pattern.block
        )
        far.masked_fill_(part.far_hidden[..., None], -torch.inf)
        if self.far_kept is not None:
            shown = self.far_kept[:, None, : far.shape[-2]]
            far.masked_fill_(~shown, -torch.inf)
        return _wide(torch.cat([near, far.flatten(-2)], -1))


def _wide(x: Tensor) -> Tensor:
    """At least fp32: a softmax is no place for bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Attention(torch.autograd.Function):
    """softmax(scale · q · kᵀ) · v over what is seen. Scores are made again on the way back, not kept."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands them over by position
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pattern: Pattern,
        scale: float,
        kept: Tensor | None,
    ) -> Tensor:
        """Shapes are those of `attend`."""
        layout = _Layout(query, key, pattern, kept)
        far_key, far_value = layout.gather(key), layout.gather(value)
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[:3], dtype=_wide(query[:0]).dtype)
        for part in layout.parts():
            mine = query[:, :, part.first : part.end] * scale
            scores = layout.scores(part, mine, key, far_key)
            logs = scores.logsumexp(-1)
            chances = scores.sub_(logs[..., None]).exp_().to(query.dtype)
            near, far = torch.split(chances, [part.high - part.low, part.far], -1)
            made = (layout.grouped(near) @ value[:, :, part.low : part.high]).view(mine.shape)
            out[:, :, part.first : part.end] = made + far @ far_value[:, :, : part.far]
            sums[:, :, part.first : part.end] = logs
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.how = (pattern, scale, kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        query, key, value, out, sums = ctx.saved_tensors
        pattern, scale, kept = ctx.how
        layout = _Layout(query, key, pattern, kept)
        far_key, far_value = layout.gather(key), layout.gather(value)
        d_query, d_key, d_value = map(torch.zeros_like, (query, key, value))
        d_far_key, d_far_value = torch.zeros_like(far_key), torch.zeros_like(far_value)
        for part in layout.parts():
            rows, columns = slice(part.first, part.end), slice(part.low, part.high)
            width = [part.high - part.low, part.far]
            mine, back = query[:, :, rows] * scale, grad[:, :, rows]
            scores = layout.scores(part, mine, key, far_key)
            chances = scores.sub_(sums[:, :, rows, None]).exp_()
            # Of the softmax: its own gradient minus their mean under it, which is grad · out.
            mean = (back * out[:, :, rows]).sum(-1, keepdim=True, dtype=chances.dtype)
            near = (layout.grouped(back) @ value[:, :, columns].mT).view(*back.shape[:3], -1)
            far = back @ far_value[:, :, : part.far].mT
            slopes = _wide(torch.cat([near, far], -1)).sub_(mean).mul_(chances)
            near, far = torch.split(slopes.to(query.dtype), width, -1)
            made = (layout.grouped(near) @ key[:, :, columns]).view(mine.shape)
            d_query[:, :, rows] = made.add_(far @ far_key[:, :, : part.far]).mul_(scale)
            d_key[:, :, columns] += layout.grouped(near).mT @ layout.grouped(mine)
            d_far_key[:, :, : part.far] += far.mT @ mine
            near, far = torch.split(chances.to(query.dtype), width, -1)
            d_value[:, :, columns] += layout.grouped(near).mT @ layout.grouped(back)
            d_far_value[:, :, : part.far] += far.mT @ back
        layout.scatter(d_far_key, d_key)
        layout.scatter(d_far_value, d_value)
        return d_query, d_key, d_value, None, None, None
