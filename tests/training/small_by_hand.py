"""Phi-3-small as loops over numbers in float64, written from its description; no code of ours in it.

Slow on purpose: one score, one sum, one token at a time, so that each line can be checked by eye.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LOWEST = float(np.finfo(np.float32).min)


def logits(weights: Mapping[str, Array], config: Any, ids: Sequence[int]) -> Array:
    """[tokens, vocabulary] of one text without padding."""
    x = weights["model.embed_tokens.weight"][list(ids)] * config.mup_embedding_multiplier
    for layer in range(config.num_hidden_layers):
        mine = {
            key.removeprefix(f"model.layers.{layer}."): value
            for key, value in weights.items()
            if key.startswith(f"model.layers.{layer}.")
        }
        x = x + attention(mine, config, norm(x, mine, "input_layernorm", config), layer)
        x = x + mlp(mine, config, norm(x, mine, "post_attention_layernorm", config))
    x = norm(x, weights, "model.final_layernorm", config)
    out = x @ weights["model.embed_tokens.weight"].T / config.mup_width_multiplier
    out[:, config.dummy_token_indices] = LOWEST
    made: Array = out
    return made


def norm(x: Array, weights: Mapping[str, Array], name: str, config: Any) -> Array:
    rows = []
    for row in x:
        centred = row - row.mean()
        rows.append(centred / math.sqrt((centred**2).mean() + config.layer_norm_epsilon))
    return np.array(rows) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(weights: Mapping[str, Array], config: Any, x: Array, layer: int) -> Array:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size, each = config.hidden_size // heads, heads // groups
    flat = linear(x, weights, "self_attn.query_key_value")
    length = len(x)
    seen = np.zeros((length, heads * size))
    for head in range(heads):
        # A group's columns: its queries one after another, then its key, then its value.
        start = (head // each) * (each + 2) * size
        place = start + (head % each) * size
        query = [turn(flat[t, place : place + size], t, config, length) for t in range(length)]
        place = start + each * size
        key = [turn(flat[t, place : place + size], t, config, length) for t in range(length)]
        value = flat[:, place + size : place + 2 * size]
        for t in range(length):
            shown = [s for s in range(t + 1) if sees(t, s, head, config, layer)]
            scale = config.mup_attn_multiplier / size if config.mup_use_scaling else size**-0.5
            scores = np.array([float(query[t] @ key[s]) * scale for s in shown])
            chances = np.exp(scores - scores.max())
            chances /= chances.sum()
            seen[t, head * size : (head + 1) * size] = chances @ value[shown]
    return linear(seen, weights, "self_attn.dense")


def sees(at: int, key_at: int, head: int, config: Any, layer: int) -> bool:
    """Whether a head's query at a place sees an earlier key."""
    every = config.dense_attention_every_n_layers
    if every and (layer + 1) % every == 0:
        return True
    block = config.blocksparse_block_size
    mine, other = at // block, key_at // block
    if mine - other < config.blocksparse_num_local_blocks:
        return True
    stride = config.blocksparse_vert_stride
    step = max(1, stride // config.num_attention_heads)
    shift = 0 if config.blocksparse_homo_head_pattern else head * step
    return (other + shift + 1) % stride == 0


def turn(x: Array, at: int, config: Any, length: int) -> Array:
    """Rotate the pair (i, i + half) by at · speed of i."""
    half = len(x) // 2
    scaling = config.rope_scaling
    which = None
    if scaling is not None:
        which = "long" if length > config.original_max_position_embeddings else "short"
    made = np.zeros(len(x))
    for i in range(half):
        speed = config.rope_embedding_base ** (-2.0 * i / len(x))
        strength = 1.0
        if which is not None:
            speed /= scaling[f"{which}_factor"][i]
            strength = scaling[f"{which}_mscale"]
        angle = at * config.rope_position_scale * speed
        made[i] = (x[i] * math.cos(angle) - x[i + half] * math.sin(angle)) * strength
        made[i + half] = (x[i + half] * math.cos(angle) + x[i] * math.sin(angle)) * strength
    return made


def mlp(weights: Mapping[str, Array], config: Any, x: Array) -> Array:
    up = linear(x, weights, "mlp.up_proj")
    made = np.zeros((len(x), up.shape[1] // 2))
    for column in range(made.shape[1]):
        gate, through = up[:, 2 * column], up[:, 2 * column + 1]
        if config.gegelu_limit is not None:
            gate = np.minimum(gate, config.gegelu_limit)
            through = np.clip(through, -config.gegelu_limit, config.gegelu_limit)
        made[:, column] = gate / (1 + np.exp(-1.702 * gate)) * (through + 1)
    return linear(made, weights, "mlp.down_proj")
