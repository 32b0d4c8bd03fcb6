"""Phi-3's forward pass over rows that lie end to end, up to the loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from local_runner.flat import head
from local_runner.flat.attention import Heads, Turn, attend
from local_runner.flat.pieces import rms_norm, swiglu

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from local_runner.data import Example
    from local_runner.flat.projections import Projection
    from local_runner.flat.rows import Flat

PROJECTIONS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True)
class _Layer:
    before_attention: Tensor
    qkv: Projection
    out: Projection
    before_mlp: Tensor
    gate_up: Projection
    down: Projection


class Phi3:
    """The weights of a transformers Phi-3, shared with it, and its projections as they are trained."""

    def __init__(
        self, model: Any, project: Callable[[nn.Module], Projection], *, again: bool = False
    ) -> None:
        """What a model is and how it is computed.

        Args:
            model: a Phi3ForCausalLM.
            project: one of its linear layers -> how it is computed.
            again: whether a layer is computed again for its gradients, and keeps nothing for them.
        """
        self._again = again
        config, inner = model.config, model.model
        self._eps: float = config.rms_norm_eps
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._heads = Heads(
            config.num_attention_heads, config.num_key_value_heads, size, config.sliding_window
        )
        self._embeddings: Tensor = inner.embed_tokens.weight.detach()
        self._norm: Tensor = inner.norm.weight.detach().float()
        self._head: Tensor = model.lm_head.weight.detach().float()
        self._turns = _Turns(inner.rotary_emb, config)
        self._layers = [_layer(layer, project) for layer in inner.layers]
        hidden = config.hidden_size
        products = sum(
            layer.get_submodule(name).weight.numel()
            for layer in inner.layers
            for name in PROJECTIONS
        )
        self._costs: tuple[int, int, int] = (
            products,
            len(self._layers) * hidden,
            self._head.numel(),
        )

    @property
    def projections(self) -> list[Projection]:
        """All of them, in the order in which they are met."""
        return [
            p for layer in self._layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down)
        ]

    def cost(self, row: Example) -> float:
        """Multiplications that a row takes, about."""
        each, pair, answer = self._costs
        length = len(row.ids)
        return each * length + pair * length * length + answer * sum(row.trained[1:])

    def reach(self, length: int) -> None:
        """Be ready for rows of up to this length. Not while another thread asks for a loss."""
        for each in {length, min(length, self._turns.short)}:
            self._turns.reach(each)

    def loss(self, rows: Flat, dice: Generator | None) -> tuple[Tensor, Tensor]:
        """The summed loss in nats of the trained tokens, and how many of them are the likeliest.

        Args:
            rows: what is read.
            dice: for dropout; None has none.
        """
        turn = self._turns.of(rows.spans)
        x = functional.embedding(rows.ids, self._embeddings).float()  # [tokens, hidden]
        for layer in self._layers:
            given = (x, layer, rows, turn, dice)
            if self._again and torch.is_grad_enabled():
                x = checkpoint(self._pass, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self._pass(*given)
        return head.loss(rms_norm(x, self._norm, self._eps), self._head, rows.targets)

    def _pass(
        self, x: Tensor, layer: _Layer, rows: Flat, turn: Turn, dice: Generator | None
    ) -> Tensor:
        """One layer. x: [tokens, hidden]; after the last, [answers, hidden]."""
        qkv = layer.qkv(rms_norm(x, layer.before_attention, self._eps), dice)
        in_place = not layer.qkv.keeps_output
        seen = attend(qkv, rows.spans, turn, self._heads, in_place=in_place)
        if layer is self._layers[-1]:
            # From here on every token is for itself, and only these have a loss: [answers, hidden]
            x, seen = x[rows.asked], seen[rows.asked]
        x = x + layer.out(seen, dice)
        gate_up = layer.gate_up(rms_norm(x, layer.before_mlp, self._eps), dice)
        return x + layer.down(swiglu(gate_up), dice)


class _Turns:
    """Rotations by place. A row's own length says which of LongRoPE's two sets it takes.

    That is how the row is served. transformers asks the longest row of a padded batch, so that there a
    short row's result hangs on its neighbours.
    """

    def __init__(self, rotary: Any, config: Any) -> None:
        self._rotary = rotary
        longrope = config.rope_parameters["rope_type"] == "longrope"
        self.short = int(config.original_max_position_embeddings) if longrope else sys.maxsize
        self._tables: dict[bool, Turn] = {}

    def reach(self, length: int) -> None:
        """Have all places of a row of this length."""
        is_long = length > self.short
        table = self._tables.get(is_long)
        if table is None or len(table.cos) < length:
            many = min(length + 256, sys.maxsize if is_long else self.short)
            cos, sin = self._rotary(torch.empty(0), torch.arange(many)[None])
            half = cos.shape[-1] // 2  # the other half is the same
            self._tables[is_long] = Turn(
                cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()
            )

    def of(self, spans: Sequence[tuple[int, int]]) -> Turn:
        """Those of rows that lie end to end."""
        tables = [(self._tables[end - start > self.short], end - start) for start, end in spans]
        return Turn(
            torch.cat([table.cos[:length] for table, length in tables]),
            torch.cat([table.sin[:length] for table, length in tables]),
        )


def _layer(layer: Any, project: Callable[[nn.Module], Projection]) -> _Layer:
    qkv, out, gate_up, down = (project(layer.get_submodule(name)) for name in PROJECTIONS)
    return _Layer(
        layer.input_layernorm.weight.detach().float(),
        qkv,
        out,
        layer.post_attention_layernorm.weight.detach().float(),
        gate_up,
        down,
    )
