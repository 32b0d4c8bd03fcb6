"""Whether a saved adapter is one of this model, told from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_KEY = re.compile(
    r"base_model\.model\.(?P<path>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|ia3_l|oft_R"
    r"|vera_lambda_b|vera_lambda_d)(\.weight)?"
)
_VERA = {"base_model.vera_A": "in_features", "base_model.vera_B": "out_features"}
_VIRTUAL = "prompt_embeddings"


def misfit(
    model: Any, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
) -> str | None:
    """The first tensor that is not of this model; None where all are.

    Args:
        model: a transformers model.
        config: the adapter's own.
        shapes: the shape of each of its tensors.
    """
    layers = {key: _layer(model, key) for key in shapes}
    for key, shape in shapes.items():
        if key == _VIRTUAL:
            fits = shape[-1] == _virtual_width(model, config)
        elif key in _VERA:
            found = [
                getattr(layer, _VERA[key], 0) for layer in layers.values() if layer is not None
            ]
            fits = shape[key == "base_model.vera_A"] == max(found, default=-1)
        else:
            match = _KEY.fullmatch(key)
            fits = match is not None and _fits(layers[key], match["part"], shape)
        if not fits:
            return key
    return None


def _fits(layer: Any, part: str, shape: Sequence[int]) -> bool:
    wide, long = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    match part:
        case "lora_A":
            return bool(shape[-1] == wide)
        case "lora_B" | "lora_magnitude_vector" | "vera_lambda_b":
            return bool(shape[0] == long)
        case "vera_lambda_d":
            return wide is not None
        case "ia3_l":
            return tuple(shape) in ((long, 1), (1, wide))
        case _:  # oft_R: [blocks, block · (block - 1) / 2]
            block = (1 + (1 + 8 * shape[1]) ** 0.5) / 2
            return bool(shape[0] * block == wide)


def _layer(model: Any, key: str) -> Any:
    match = _KEY.fullmatch(key)
    try:
        return model.get_submodule(match["path"]) if match else None
    except AttributeError:
        return None


def _virtual_width(model: Any, config: Mapping[str, Any]) -> int:
    """Numbers of a virtual token: an embedding, or keys and values of every layer."""
    shape = model.config
    if config.get("peft_type") == "PROMPT_TUNING":
        return int(shape.hidden_size)
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return int(2 * shape.num_hidden_layers * shape.num_key_value_heads * size)
