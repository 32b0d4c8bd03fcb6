"""The family's architectures: the class of each, the names in its checkpoints, what an adapter covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maas_client.errors import BaseModelError

if TYPE_CHECKING:
    from local_runner.models.checkpoint import Shape


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `model_type` of config.json."""

    name: str
    members: str
    """Which models have it, in words."""
    lora_targets: tuple[str, ...]
    """The Linear layers that an adapter covers."""


ARCHITECTURES: Mapping[str, Architecture] = {
    each.name: each
    for each in (
        # Fused projections: q_proj and its like would match nothing, without an error.
        Architecture(
            "phi3",
            "Phi-3-mini, Phi-3-medium, Phi-3.5-mini, Phi-4-mini, Phi-4",
            ("down_proj", "gate_up_proj", "o_proj", "qkv_proj"),
        ),
        Architecture(
            "phi3small", "Phi-3-small", ("dense", "down_proj", "query_key_value", "up_proj")
        ),
        # The experts are one tensor a layer and no Linear; the router is left as it is.
        Architecture("phimoe", "Phi-3.5-MoE", ("k_proj", "o_proj", "q_proj", "v_proj")),
    )
}


def architecture(model_type: Any, label: str) -> Architecture:
    """The architecture of that name.

    Raises:
        BaseModelError: the runner does not know it.
    """
    found = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        known = "; ".join(f"{each.name} ({each.members})" for each in ARCHITECTURES.values())
        raise BaseModelError(
            f"the architecture of {label} is {model_type!r}; the runner trains {known}",
            hint="Name a Phi-3, Phi-3.5 or Phi-4 checkpoint with --base.",
        )
    return found


def model_class(name: str) -> Any:
    """The class of an architecture: transformers' own, or ours. Never code that a checkpoint brings."""
    match name:
        case "phi3small":
            from local_runner.models.phi3_small import Phi3SmallForCausalLM

            return Phi3SmallForCausalLM
        case "phimoe":
            from transformers import PhimoeForCausalLM

            return PhimoeForCausalLM
        case _:
            from transformers import Phi3ForCausalLM

            return Phi3ForCausalLM


def model_config(name: str, raw: Mapping[str, Any]) -> Any:
    """config.json as the architecture's own config.

    Raises:
        ValueError, TypeError, KeyError: it says what cannot be.
    """
    scaling = raw.get("rope_scaling")
    if name == "phi3" and scaling and scaling.get("type") == "su":
        # The first releases' word for it; transformers knows the word, but forgets the first length by it.
        raw = {**raw, "rope_scaling": {**scaling, "type": "longrope"}}
    return model_class(name).config_class.from_dict(dict(raw))


def steady_context(config: Any) -> int:
    """Up to how many tokens each place is turned the same; LongRoPE turns all of a longer text otherwise."""
    whole = int(config.max_position_embeddings)
    if config.model_type == "phi3small":
        return min(whole, config.rotary.before) if config.rope_scaling else whole
    given = config.rope_parameters
    if given["rope_type"] == "default":
        return whole
    return min(whole, int(given["original_max_position_embeddings"]))


def checkpoint_shapes(model: Any) -> dict[str, Shape]:
    """What a checkpoint of this model holds, by the names of the published ones."""
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if model.config.model_type != "phimoe":
        return own
    return dict(pair for key, shape in own.items() for pair in _expert_by_expert(key, shape))


def _expert_by_expert(key: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    """transformers puts a layer's experts into two tensors; checkpoints hold three for each of them."""
    layer, _, part = key.partition(".mlp.")
    if part == "router.weight":
        yield f"{layer}.block_sparse_moe.gate.weight", shape
        return
    if not part.startswith("experts."):
        yield key, shape
        return
    experts, rows, columns = shape
    for expert in range(experts):
        place = f"{layer}.block_sparse_moe.experts.{expert}"
        if part == "experts.gate_up_proj":
            yield f"{place}.w1.weight", (rows // 2, columns)
            yield f"{place}.w3.weight", (rows // 2, columns)
        else:
            yield f"{place}.w2.weight", (rows, columns)
