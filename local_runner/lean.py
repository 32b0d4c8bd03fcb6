"""Phi-3's forward pass for many texts at once, each at its own place and with its own adapter.

transformers' layers want one rectangle of tokens and one adapter. Here the tokens of all rows lie end to
end: the projections, the norms and the head see [tokens, features], and only attention knows of rows.
The arithmetic is transformers'; the order of some sums is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from local_runner.models.family import steady_context

if TYPE_CHECKING:
    from torch import Tensor

QKV, OUT = "self_attn.qkv_proj", "self_attn.o_proj"
GATE_UP, DOWN = "mlp.gate_up_proj", "mlp.down_proj"
PROJECTIONS = (QKV, OUT, GATE_UP, DOWN)

Place = tuple[int, str]
"""A projection: its layer and its name."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The low-rank parts beside the projections, those of several adapters in one pair of matrices."""

    parts: Mapping[Place, tuple[Tensor, Tensor]]
    """By place: [in, ranks] and [ranks, out], the scale in the second."""
    mask: Tensor | None
    """[tokens, ranks]: 1 where the token's adapter is the rank's; None where there is one for all."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of a row that is still being read."""

    slot: int
    ids: Sequence[int]
    start: int
    """The place of the first."""


@dataclass(frozen=True, slots=True)
class _Layer:
    weights: Mapping[str, Tensor]
    before_attention: Tensor
    before_mlp: Tensor


def serves(model: Any) -> bool:
    """Whether this forward pass is the model's."""
    return bool(model.config.model_type == "phi3" and model.config.hidden_act == "silu")


class Lean:
    """The weights of a Phi-3, shared with the model that they come from, and what its rows remember."""

    def __init__(self, model: Any) -> None:
        config, inner = model.config, model.model
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.size: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.window: int | None = config.sliding_window
        self._eps: float = config.rms_norm_eps
        # detached: peft may put another tensor in the place of a weight, and must not reach us
        self._embeddings: Tensor = inner.embed_tokens.weight.detach()
        self._head: Tensor = model.lm_head.weight.detach()
        self._norm: Tensor = inner.norm.weight.detach()
        self._layers = [_layer(layer) for layer in inner.layers]
        self.context = steady_context(config)
        self._cos, self._sin = self._rotations(inner.rotary_emb)
        self.memory = Memory(len(self._layers), self.groups, self.size, self._norm.dtype)

    def _rotations(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """cos and sin for every place, [context, 1, rotated]; the sine of the first half negated."""
        places = torch.arange(self.context)[None]
        cos, sin = rotary(self._norm[None, None], places)
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        return cos[0][:, None].contiguous(), signed[:, None].contiguous()

    def forward(
        self,
        last: Sequence[int],
        lengths: Sequence[int],
        chunks: Sequence[Chunk],
        low: LowRank | None,
        *,
        limit: int | None = None,
    ) -> Tensor:
        """One step: logits, [rows, vocabulary], of the rows that speak and then of the chunks' last tokens.

        Args:
            last: the newest token of the rows that speak; they have the first slots.
            lengths: how many tokens those rows remember.
            chunks: what is read in this step.
            low: the adapters.
            limit: how long the longest of the rows may become; the context where it is not known.
        """
        ids, places = [*last], [*lengths]
        for chunk in chunks:
            ids += chunk.ids
            places += range(chunk.start, chunk.start + len(chunk.ids))
        self.memory.reserve(len(last) + len(chunks), max(places) + 1, limit or self.context)
        at = torch.tensor(places)
        cos, sin = self._cos[at], self._sin[at]
        attention = _Attention(self, at[: len(last)], chunks)
        x = functional.embedding(torch.tensor(ids), self._embeddings)  # [tokens, hidden]
        for number, layer in enumerate(self._layers):
            normed = functional.rms_norm(x, x.shape[-1:], layer.before_attention, self._eps)
            qkv = _project(normed, layer, (number, QKV), low)
            heads = qkv.view(len(ids), -1, self.size)
            _rotate(heads[:, : self.heads + self.groups, : cos.shape[-1]], cos, sin)
            x = x + _project(attention(number, heads), layer, (number, OUT), low)
            normed = functional.rms_norm(x, x.shape[-1:], layer.before_mlp, self._eps)
            gate, up = _project(normed, layer, (number, GATE_UP), low).chunk(2, -1)
            x = x + _project(functional.silu(gate).mul_(up), layer, (number, DOWN), low)
        x = x[_lasts(len(last), chunks)] if chunks else x
        return functional.linear(
            functional.rms_norm(x, x.shape[-1:], self._norm, self._eps), self._head
        )


_WASTE = 4
"""How many times what is needed may be kept, to be spared a copy."""


class Memory:
    """Keys and values of all rows: a slot each, from its beginning; behind its end lies what was."""

    def __init__(self, layers: int, groups: int, size: int, dtype: torch.dtype) -> None:
        self._shape = (layers, 2, 0, groups, 0, size)
        self._dtype = dtype
        self.cells = torch.zeros(self._shape, dtype=dtype)

    @property
    def cell_bytes(self) -> int:
        """What one token of one row takes."""
        layers, two, _, groups, _, size = self._shape
        return layers * two * groups * size * self._dtype.itemsize

    def reserve(self, slots: int, length: int, limit: int) -> None:
        """Make room; what the rows have stays, and there is never more than rows of one step can fill.

        Room that a crowd or a long text had is given back when other room is made, and when four times
        what is needed would be kept.

        Args:
            slots: rows that there are.
            length: tokens of the longest of them now.
            limit: tokens that the longest of them may come to have.
        """
        have, long = self.cells.shape[2], self.cells.shape[4]
        wasteful = have * long > _WASTE * slots * limit
        if slots <= have and length <= long and not wasteful:
            return
        layers, two, _, groups, _, size = self._shape
        room = long if length <= long <= limit else min(limit, length + length // 4 + 64)
        room = max(room, length)
        kept, filled = min(have, slots), min(long, room)
        # Zeros: what is masked is multiplied by zero all the same, and must be a number.
        cells = torch.zeros(layers, two, slots, groups, room, size, dtype=self._dtype)
        cells[:, :, :kept, :, :filled] = self.cells[:, :, :kept, :, :filled]
        self.cells = cells

    def move(self, source: int, target: int, length: int) -> None:
        """Put a row into another slot."""
        self.cells[:, :, target, :, :length] = self.cells[:, :, source, :, :length]

    def forget(self) -> None:
        """Give the room back."""
        self.cells = torch.zeros(self._shape, dtype=self._dtype)


class _Attention:
    """Who looks at what in one step; the same in every layer."""

    def __init__(self, lean: Lean, at: Tensor, chunks: Sequence[Chunk]) -> None:
        self._lean, self._at, self._chunks = lean, at, chunks
        self._rows = torch.arange(len(at))
        self._longest = int(at.max()) + 1 if len(at) else 0
        dtype = lean.memory.cells.dtype
        places = torch.arange(self._longest)
        self._mask = _additive(_seen(at[:, None], places, lean.window), dtype)[:, None, None]
        self._chunk_masks = [_chunk_mask(chunk, lean.window) for chunk in chunks]

    def __call__(self, layer: int, heads: Tensor) -> Tensor:
        """heads: [tokens, heads + 2 groups, size] -> [tokens, heads * size]."""
        lean, count = self._lean, len(self._at)
        query, key, value = torch.split(heads, [lean.heads, lean.groups, lean.groups], 1)
        keys, values = lean.memory.cells[layer]  # [slots, groups, length, size]
        made = []
        if count:
            keys[self._rows, :, self._at] = key[:count]
            values[self._rows, :, self._at] = value[:count]
            # The heads of a group are its queries: nothing is repeated. [rows, groups, heads / groups, size]
            grouped = query[:count].view(count, lean.groups, -1, lean.size)
            seen = functional.scaled_dot_product_attention(
                grouped,
                keys[:count, :, : self._longest],
                values[:count, :, : self._longest],
                attn_mask=self._mask,
            )
            made.append(seen.reshape(count, -1))
        first = count
        for chunk, mask in zip(self._chunks, self._chunk_masks, strict=True):
            after = first + len(chunk.ids)
            end = chunk.start + len(chunk.ids)
            keys[chunk.slot, :, chunk.start : end] = key[first:after].transpose(0, 1)
            values[chunk.slot, :, chunk.start : end] = value[first:after].transpose(0, 1)
            seen = functional.scaled_dot_product_attention(
                query[None, first:after].transpose(1, 2),
                keys[None, chunk.slot, :, :end],
                values[None, chunk.slot, :, :end],
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=True,
            )  # [1, heads, tokens, size]
            made.append(seen.transpose(1, 2).reshape(after - first, -1))
            first = after
        return made[0] if len(made) == 1 else torch.cat(made)


def _seen(at: Tensor, places: Tensor, window: int | None) -> Tensor:
    """Whether a token at `at` looks at a place."""
    seen = places <= at
    return seen if window is None else seen & (places > at - window)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _chunk_mask(chunk: Chunk, window: int | None) -> Tensor | None:
    """None where plain causality says it all."""
    end = chunk.start + len(chunk.ids)
    if chunk.start == 0 and (window is None or end <= window):
        return None
    return _seen(torch.arange(chunk.start, end)[:, None], torch.arange(end), window)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn queries and keys, in place. x: [tokens, heads, rotated]."""
    x.copy_((x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin))


def _project(x: Tensor, layer: _Layer, place: Place, low: LowRank | None) -> Tensor:
    """x: [tokens, in] -> [tokens, out]: the base once for all, and each token's adapter."""
    out = functional.linear(x, layer.weights[place[1]])
    if low is not None and (part := low.parts.get(place)) is not None:
        inner = x @ part[0]  # [tokens, ranks]
        out.addmm_(inner if low.mask is None else inner.mul_(low.mask), part[1])
    return out


def _lasts(speaking: int, chunks: Sequence[Chunk]) -> Tensor:
    """Which tokens are the last of their row."""
    found, end = [*range(speaking)], speaking
    for chunk in chunks:
        end += len(chunk.ids)
        found.append(end - 1)
    return torch.tensor(found)


def _layer(layer: Any) -> _Layer:
    return _Layer(
        {name: layer.get_submodule(name).weight.detach() for name in PROJECTIONS},
        layer.input_layernorm.weight.detach(),
        layer.post_attention_layernorm.weight.detach(),
    )
