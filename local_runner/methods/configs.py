"""A plan's values -> peft's config of its method, and bitsandbytes' of its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maas_client.errors import BaseModelError, PlanError
from maas_client.spec.hyperparameters import KNOBS
from maas_client.spec.methods import is_quantized, method_of

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig

_TASK = "CAUSAL_LM"
_FEED_FORWARD = "down_proj"
_KEYS_AND_VALUES = ("qkv_proj", "query_key_value", "k_proj", "v_proj")


def make_config(values: Mapping[str, Any], targets: Sequence[str], *, seed: int) -> PeftConfig:
    """peft's config.

    Args:
        values: the plan's.
        targets: the projections that an adapter of this architecture covers.
        seed: of the plan; VeRA makes its fixed matrices of it.
    """
    import peft

    covered = sorted(targets)
    match method_of(values):
        case "lora" | "dora":
            return _lora(values, covered)
        case "ia3":
            # Fused projections have no keys of their own: their queries get a factor, too.
            scaled = [each for each in covered if each in _KEYS_AND_VALUES]
            last = [each for each in covered if each == _FEED_FORWARD]
            return peft.IA3Config(
                task_type=_TASK, target_modules=scaled + last, feedforward_modules=last
            )
        case "prefix_tuning":
            return peft.PrefixTuningConfig(task_type=_TASK, num_virtual_tokens=_virtual(values))
        case "prompt_tuning":
            return peft.PromptTuningConfig(task_type=_TASK, num_virtual_tokens=_virtual(values))
        case "vera":
            return peft.VeraConfig(
                task_type=_TASK,
                r=values["lora_r"],
                vera_dropout=values["lora_dropout"],
                target_modules=covered,
                projection_prng_key=seed,
            )
        case "oft":
            return peft.OFTConfig(
                task_type=_TASK,
                oft_block_size=values["oft_block_size"],
                module_dropout=values["lora_dropout"],
                target_modules=covered,
            )
        case other:
            raise PlanError(f"peft_method {other} trains no adapter")


def _lora(values: Mapping[str, Any], covered: list[str]) -> PeftConfig:
    from peft import LoraConfig

    start = values.get("init_lora_weights", "true")
    return LoraConfig(
        task_type=_TASK,
        r=values["lora_r"],
        lora_alpha=values["lora_alpha"],
        lora_dropout=values["lora_dropout"],
        use_rslora=values.get("use_rslora") or False,
        use_dora=method_of(values) == "dora",
        init_lora_weights=True if start == "true" else start,
        target_modules=covered,
    )


def _virtual(values: Mapping[str, Any]) -> int:
    return int(values["num_virtual_tokens"])


def check_blocks(model: Any, targets: Sequence[str], size: int) -> None:
    """Whether OFT's blocks fill every projection; peft would take another size with a warning.

    Raises:
        BaseModelError: they do not.
    """
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in targets and layer.in_features % size:
            raise BaseModelError(
                f"oft_block_size is {size}, which does not divide the {layer.in_features} features of {name}",
                hint="Take a power of two, such as 32.",
            )


def weight_type(values: Mapping[str, Any]) -> str:
    """How the base's weights are held, by torch's name.

    Frozen weights are read in bf16; trained ones stay in fp32, and only the products are in bf16.
    """
    frozen = method_of(values) != "full"
    halved = values.get("precision") == "bf16" and frozen
    return "bfloat16" if halved else "float32"


def quantization(values: Mapping[str, Any]) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds the base; None where it does not."""
    if not is_quantized(values):
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if values.get("load_in_8bit"):
        return BitsAndBytesConfig(load_in_8bit=True)
    kind = values.get("bnb_4bit_quant_type") or KNOBS["bnb_4bit_quant_type"].default
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=bool(values.get("bnb_4bit_use_double_quant")),
        bnb_4bit_compute_dtype=getattr(torch, weight_type(values)),
    )
