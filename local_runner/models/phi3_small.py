"""Phi-3-small in plain PyTorch: forward, backward, cache and checkpoints; no kernels of its own.

What sets it apart from the other Phi-3: every second layer sees blocks instead of all tokens, queries, keys
and values share one matrix group by group, the activation is a gated GELU with a limit, and its scales are
those of muP. The names are those of the published checkpoints, so that they load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from local_runner.models import block_sparse
from local_runner.models.phi3_small_config import Phi3SmallConfig
from local_runner.models.rotary import rotate


@dataclass(frozen=True, slots=True)
class Sight:
    """Who sees whom; the same in every layer of a forward pass."""

    mask: Tensor | None
    """[batch, 1, tokens, length], True where a key is seen; None where causality says it all."""
    real: Tensor | None
    """[batch, length], False at padding; None where there is none."""


def _sight(attention_mask: Tensor | None, tokens: int, length: int, device: torch.device) -> Sight:
    """What a padding mask, [batch, length], means for the last tokens."""
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask has {attention_mask.ndim} dimensions; Phi-3-small takes [batch, length]"
        )
    real = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
    if real is None and tokens in {1, length}:
        return Sight(None, None)
    at = torch.arange(length - tokens, length, device=device)[:, None]
    key_at = torch.arange(length, device=device)
    mask = (key_at <= at)[None, None]
    if real is not None:
        # Padding sees itself: a row without any key would have no softmax.
        mask = mask & (real[:, None, None, :] | (key_at == at))
    return Sight(mask, real)


class Phi3SmallAttention(nn.Module):
    """Grouped-query attention, over all tokens or over blocks."""

    def __init__(self, config: Phi3SmallConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.size = config.head_dim
        multiplier = config.mup_attn_multiplier or 1.0
        self.scale = multiplier / self.size if config.mup_use_scaling else self.size**-0.5
        self.pattern = block_sparse.Pattern(
            block=config.blocksparse_block_size,
            near=config.blocksparse_num_local_blocks,
            stride=config.blocksparse_vert_stride,
            heads=self.heads,
            same_for_all_heads=config.blocksparse_homo_head_pattern,
        )
        self.is_dense = config.is_dense(layer)
        width = (self.heads + 2 * self.groups) * self.size
        self.query_key_value = nn.Linear(config.hidden_size, width)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, turns: tuple[Tensor, Tensor], sight: Sight, cache: Any | None
    ) -> Tensor:
        """x: [batch, tokens, hidden] -> the same shape."""
        query, key, value = self.split(self.query_key_value(x))
        query, key = rotate(query, *turns), rotate(key, *turns)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        if self.is_dense or key.shape[2] <= self.pattern.window:
            seen = self._all(query, key, value, sight)
        else:
            seen = block_sparse.attend(
                query, key, value, pattern=self.pattern, scale=self.scale, real=sight.real
            )
        out: Tensor = self.dense(seen.transpose(1, 2).flatten(2))
        return out

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, tokens, width] -> [batch, heads or groups, tokens, size] each.

        A group's queries lie together, and behind them its key and its value.
        """
        each = self.heads // self.groups
        parts = qkv.view(*qkv.shape[:2], self.groups, each + 2, self.size)
        query = parts[..., :each, :].flatten(2, 3)  # [batch, tokens, heads, size]
        key, value = parts[..., each, :], parts[..., each + 1, :]
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _all(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=sight.mask,
            is_causal=sight.mask is None and query.shape[2] > 1,
            scale=self.scale,
            enable_gqa=True,
        )


def gegelu(x: Tensor, limit: float | None) -> Tensor:
    """[…, 2 n] -> […, n]: even columns are the gate, odd ones what it lets through.

    The limit leaves infinities alone, so that an overflow is not taken for a number.
    """
    gate, linear = x[..., ::2], x[..., 1::2]
    if limit is not None:
        gate = torch.where(gate.isinf(), gate, gate.clamp(max=limit))
        linear = torch.where(linear.isinf(), linear, linear.clamp(-limit, limit))
    return gate * torch.sigmoid(1.702 * gate) * (linear + 1)


class Phi3SmallMLP(nn.Module):
    """Up, gate, down."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.limit = config.gegelu_limit
        self.up_proj = nn.Linear(config.hidden_size, 2 * config.ff_intermediate_size)
        self.down_proj = nn.Linear(config.ff_intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.ffn_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> the same shape."""
        out: Tensor = self.dropout(self.down_proj(gegelu(self.up_proj(x), self.limit)))
        return out


class Phi3SmallLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and MLP, each behind a LayerNorm and beside a residual."""

    def __init__(self, config: Phi3SmallConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attn = Phi3SmallAttention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(
            config.hidden_size, eps=config.layer_norm_epsilon
        )
        self.mlp = Phi3SmallMLP(config)

    def forward(
        self,
        x: Tensor,
        turns: tuple[Tensor, Tensor],
        sight: Sight,
        past_key_values: Any | None = None,
    ) -> Tensor:
        """[batch, tokens, hidden] -> the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), turns, sight, past_key_values)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Phi3SmallHead(nn.Linear):
    """Logits in fp32: divided by the width that muP scales by, and never in favour of a dummy."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.width = config.mup_width_multiplier or 1.0
        self.dummies: list[int] = config.dummy_token_indices or []

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
        """[…, hidden] -> […, vocabulary]."""
        logits = super().forward(input).float() / self.width
        if not self.dummies:
            return logits
        ids = torch.tensor(self.dummies, device=logits.device)
        return logits.index_fill(-1, ids, torch.finfo(logits.dtype).min)


class Phi3SmallPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers has to know."""

    config_class = Phi3SmallConfig
    config: Phi3SmallConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("Phi3SmallLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    # Older checkpoints hold the speeds of the rotation, which follow from the config.
    _keys_to_ignore_on_load_unexpected = (r".*rotary_emb\.inv_freq",)


class Phi3SmallModel(Phi3SmallPreTrainedModel):
    """Tokens to hidden states."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout_prob)
        self.layers = nn.ModuleList(
            Phi3SmallLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(  # noqa: PLR0917 - transformers' own order
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,  # noqa: FBT001
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """[batch, tokens] -> [batch, tokens, hidden].

        Args:
            input_ids: the tokens.
            attention_mask: [batch, past + tokens], 0 at padding; left, right or between.
            position_ids: [batch, tokens]; by default counted from the first column on.
            past_key_values: what earlier calls saw; the mask and the places go on from there.
            inputs_embeds: [batch, tokens, hidden] in place of `input_ids`.
            use_cache: whether keys and values are remembered.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        x = self.embedding_dropout(inputs_embeds)
        if self.config.mup_embedding_multiplier:
            x = x * self.config.mup_embedding_multiplier
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache, past_key_values = False, None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        tokens = x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + tokens, device=x.device)[None]
        cos, sin = self.config.rotary.turns(position_ids, x.dtype)
        turns = (cos[:, None], sin[:, None])  # the same for all heads
        sight = _sight(attention_mask, tokens, past + tokens, x.device)
        for layer in self.layers:
            x = layer(x, turns, sight, past_key_values=past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(x),
            past_key_values=past_key_values if use_cache else None,
        )


class Phi3SmallForCausalLM(Phi3SmallPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Tokens to the logits of the next ones."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__(config)
        self.model = Phi3SmallModel(config)
        self.lm_head = Phi3SmallHead(config)
        self.post_init()

    def forward(  # noqa: PLR0917 - transformers' own order
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,  # noqa: FBT001
        logits_to_keep: int | Tensor = 0,
        **loss_settings: Any,
    ) -> CausalLMOutputWithPast:
        """[batch, tokens] -> logits [batch, tokens, vocabulary], fp32; of the last ones only where asked."""
        made = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        hidden = made.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], **loss_settings
            )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=made.past_key_values
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers' own, and once the text grows out of the short factors it is read again.

        Keys that were turned by the short factors do not go with queries turned by the long ones.
        """
        rotary, known = self.config.rotary, 0
        if past_key_values is not None:
            known = past_key_values.get_seq_length()
        if known and rotary.is_long(input_ids.shape[1]) and not rotary.is_long(known):
            past_key_values = None
            kwargs["next_sequence_length"] = None
        made: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, **kwargs
        )
        return made


AutoConfig.register("phi3small", Phi3SmallConfig)
AutoModel.register(Phi3SmallConfig, Phi3SmallModel)
AutoModelForCausalLM.register(Phi3SmallConfig, Phi3SmallForCausalLM)
