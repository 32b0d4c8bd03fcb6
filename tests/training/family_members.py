"""Every member of the family as a small random folder: its own ratios, kinds of rotation and key names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from local_runner.models import family

SHORT, FULL = 64, 256
"""Tokens before and after the context was extended, in the place of 4,096 and 131,072."""


def _factors(count: int, highest: float) -> list[float]:
    return [round(1 + (highest - 1) * i / (count - 1), 4) for i in range(count)]


def _long(count: int, **more: Any) -> dict[str, Any]:
    """LongRoPE as the hub's config.json have it, with as many factors as the real model has."""
    factors = {"short_factor": _factors(count, 2.8), "long_factor": _factors(count, 64.8)}
    return {"type": "longrope", **factors, **more}


_PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "model_type": "phi3",
    "vocab_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": FULL,
    "original_max_position_embeddings": FULL,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
}
_MINI = {"hidden_size": 96 * 4, "intermediate_size": 256 * 4, "num_attention_heads": 4}
_MEDIUM = {"hidden_size": 128 * 4, "intermediate_size": 448 * 4, "num_attention_heads": 4}
_EXTENDED = {"original_max_position_embeddings": SHORT, "sliding_window": 262144}
_SMALL = {
    "architectures": ["Phi3SmallForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3_small.Phi3SmallForCausalLM"},
    "model_type": "phi3small",
    "vocab_size": 96,
    "hidden_size": 128 * 4,
    "ff_intermediate_size": 448 * 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": FULL,
    "blocksparse_block_size": 8,
    "blocksparse_num_local_blocks": 4,
    "dummy_token_indices": [90, 91],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
}
_MOE = {
    "architectures": ["PhiMoEForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_phimoe.PhiMoEConfig"},
    "model_type": "phimoe",
    "vocab_size": 96,
    "hidden_size": 128 * 4,
    "intermediate_size": 50 * 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "lm_head_bias": True,
    "max_position_embeddings": FULL,
    "original_max_position_embeddings": SHORT,
    "rope_theta": 10000.0,
    "rope_scaling": _long(
        64, short_mscale=1.243, long_mscale=1.243, original_max_position_embeddings=SHORT
    ),
    "sliding_window": 131072,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
}

MEMBERS: dict[str, dict[str, Any]] = {
    "Phi-3-mini-4k-instruct": {**_PHI3, **_MINI, "num_key_value_heads": 4, "sliding_window": 2047},
    "Phi-3-mini-128k-instruct": {
        **_PHI3, **_MINI, **_EXTENDED, "num_key_value_heads": 4,
        "rope_scaling": {**_long(48), "type": "su"},
    },
    "Phi-3.5-mini-instruct": {
        **_PHI3, **_MINI, **_EXTENDED, "num_key_value_heads": 4, "rope_scaling": _long(48),
    },
    "Phi-3-medium-4k-instruct": {**_PHI3, **_MEDIUM, "num_key_value_heads": 1},
    "Phi-3-medium-128k-instruct": {
        **_PHI3, **_MEDIUM, **_EXTENDED, "num_key_value_heads": 1,
        "rope_scaling": {**_long(64), "type": "su"},
    },
    "Phi-3-small-8k-instruct": _SMALL,
    "Phi-3-small-128k-instruct": {
        **_SMALL, "original_max_position_embeddings": SHORT,
        "rope_scaling": {**_long(64), "type": "su", "short_mscale": 1.1, "long_mscale": 1.2},
    },
    "Phi-3.5-MoE-instruct": _MOE,
    "Phi-4-mini-instruct": {
        **_PHI3, **_EXTENDED, "hidden_size": 128 * 3, "intermediate_size": 1024,
        "num_attention_heads": 3, "num_key_value_heads": 1, "partial_rotary_factor": 0.75,
        "rope_scaling": {**_long(48), "short_factor": [1.0] * 48}, "tie_word_embeddings": True,
    },
    "Phi-4": {**_PHI3, **_MEDIUM, "num_key_value_heads": 1, "rope_theta": 250000.0},
}  # fmt: skip
"""config.json by model. Heads are as wide as the real ones; there are fewer of them, in the same ratio."""


def write(folder: Path, config: dict[str, Any], *, shard: str = "200KB") -> Path:
    """A checkpoint of random weights in bf16, in shards, with the config as the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    cls = family.model_class(config["model_type"])
    torch.manual_seed(0)
    model = cls(family.model_config(config["model_type"], config)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "config.json").write_text(json.dumps(config))  # the hub's, not our own form of it
    return folder
