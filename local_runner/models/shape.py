"""A base's sizes, read from config.json and the heads of its weight files. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from local_runner.models import checkpoint
from maas_client.errors import BaseModelError
from maas_client.spec.memory import Shape

Kind = Literal["float32", "bfloat16", "float16"]
_KINDS: Mapping[str, Kind] = {"BF16": "bfloat16", "F16": "float16"}


def shape_of(folder: Path) -> Shape | None:
    """The sizes of a Phi-3; None where memory is not forecast, or where it is no model."""
    with suppress(OSError, ValueError, KeyError, TypeError, BaseModelError):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["model_type"] != "phi3":
            return None
        heads = int(config["num_attention_heads"])
        size = int(config.get("head_dim") or config["hidden_size"] // heads)
        return Shape(
            hidden=int(config["hidden_size"]),
            inner=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            queries=heads * size,
            keys=int(config.get("num_key_value_heads") or heads) * size,
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            stored=_stored(folder),
        )
    return None


def _stored(folder: Path) -> Kind:
    """What a weight is in the files; fp32 where they hold several kinds, which are all made that."""
    kinds = {tensor.kind for tensor in checkpoint.stored(folder).values()}
    return _KINDS.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"
