"""The adapters that are trained, by peft's names. Here: LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maas_client.plan import Plan
from maas_client.spec.catalog import find_model

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import Phi3ForCausalLM

PHI3_TARGETS = ("down_proj", "gate_up_proj", "o_proj", "qkv_proj")
"""Phi-3's projections are fused: q_proj and its like would match nothing, without an error."""


def attach(model: Phi3ForCausalLM, plan: Plan, *, name: str) -> PeftModel:
    """Put a fresh adapter on the model; only its weights have gradients.

    Args:
        model: the frozen base.
        plan: rank, scale, dropout and the seed of the adapter's start.
        name: what the adapter says that it belongs to.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    entry = find_model(plan.job.model.asset_name)
    targets = entry.lora_targets if entry and entry.architecture == "phi3" else PHI3_TARGETS
    values = plan.values
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=values["lora_r"],
        lora_alpha=values["lora_alpha"],
        lora_dropout=values["lora_dropout"],
        use_rslora=values.get("use_rslora") or False,
        target_modules=sorted(targets),
        base_model_name_or_path=name,
    )
    torch.manual_seed(plan.seed)
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = name
    return adapted


def tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors under the names that peft saves them with, sorted."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model)
    return {key: state[key].detach().contiguous() for key in sorted(state)}


def save(model: PeftModel, folder: Path) -> None:
    """Write the adapter in PEFT's layout, the same bytes for the same weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(model), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = _plain(model.peft_config["default"].to_dict())
    config["inference_mode"] = True
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def restore(model: PeftModel, file: Path) -> None:
    """Put saved adapter tensors back."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(file))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON can hold it, in an order that does not depend on the process."""
    return {
        key: sorted(value) if isinstance(value, set | frozenset) else value
        for key, value in config.items()
    }
