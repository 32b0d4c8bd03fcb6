"""Whether a model is one that rows end to end serve, and its learner then."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from local_runner.flat.learner import Learner
from local_runner.flat.phi3 import PROJECTIONS, Phi3
from local_runner.flat.projections import Beside, Frozen, Merged
from local_runner.flat.streamed import Streamed
from maas_client.spec.memory import Thrift

if TYPE_CHECKING:
    from local_runner.flat.projections import Projection

_ROTATIONS = ("default", "longrope")
_ADAPTER = "default"


def open_learner(model: Any, *, threads: int, thrift: Thrift | None = None) -> Learner | None:
    """A learner over a model and its adapter; None where it would not be the same model.

    Args:
        model: a transformers model, or a `PeftModel` over one; the learner shares its weights.
        threads: what it may use.
        thrift: how it spares memory.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    methods = {config.peft_type for config in getattr(model, "peft_config", {}).values()}
    way = thrift or Thrift(threads)
    if not (_is_served(base, streamed=way.streamed) and methods <= {"LORA"}):
        return None
    layers = [layer.get_submodule(name) for layer in base.model.layers for name in PROJECTIONS]
    if not all(map(_is_plain, layers)):
        return None
    adapted = sum(hasattr(module, "base_layer") for module in base.modules())
    if adapted != sum(hasattr(layer, "base_layer") for layer in layers):
        return None  # something beside the projections has an adapter, too
    project = partial(_project, streamed=way.streamed)
    phi3 = Phi3(base, project, again=way.gradient_checkpointing)
    ours = {id(weight) for projection in phi3.projections for weight in projection.trained}
    if any(id(weight) not in ours for weight in model.parameters() if weight.requires_grad):
        return None  # something else is trained, too
    dropout = any(isinstance(projection, Beside) for projection in phi3.projections)
    return Learner(phi3, threads=threads, dropout=dropout, thrift=way)


def _is_served(model: Any, *, streamed: bool) -> bool:
    config, kind = model.config, model.model.embed_tokens.weight.dtype
    return bool(
        config.model_type == "phi3"
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in _ROTATIONS
        and not (config.resid_pdrop or config.attention_dropout)
        and (kind is torch.float32 or (streamed and kind.is_floating_point))
        and model.model.embed_tokens.weight.device.type == "cpu"
    )


def _is_plain(layer: Any) -> bool:
    """Whether it is a matrix, alone or with LoRA or DoRA and nothing more."""
    if type(layer) is torch.nn.Linear:
        return layer.bias is None
    if not (hasattr(layer, "lora_A") and type(layer.base_layer) is torch.nn.Linear):
        return False
    variant = layer.lora_variant.get(_ADAPTER)
    drops = not isinstance(layer.lora_dropout[_ADAPTER], torch.nn.Identity)
    return bool(
        list(layer.lora_A) == [_ADAPTER]
        and layer.active_adapters == [_ADAPTER]
        and not (layer.disable_adapters or layer.merged)
        and layer.base_layer.bias is None
        and layer.lora_B[_ADAPTER].bias is None
        and (variant is None or (type(variant).__name__ == "DoraLinearVariant" and not drops))
    )


def _project(layer: Any, *, streamed: bool) -> Projection:
    if type(layer) is torch.nn.Linear:
        weight = layer.weight.detach()
        return Streamed(weight) if streamed else Frozen(weight)
    weight, scale = layer.base_layer.weight.detach(), layer.scaling[_ADAPTER]
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    dropout = layer.lora_dropout[_ADAPTER]
    if not isinstance(dropout, torch.nn.Identity):
        return Beside(weight, a, b, scale=scale, dropout=dropout.p)
    if streamed and layer.lora_variant.get(_ADAPTER) is None:
        return Streamed(weight, a, b, scale=scale)
    dora = layer.lora_variant.get(_ADAPTER) is not None
    magnitude = layer.lora_magnitude_vector[_ADAPTER].weight if dora else None
    return Merged(weight, a, b, scale=scale, magnitude=magnitude)
