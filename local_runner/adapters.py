"""The adapters that are trained, by peft's names. Here: LoRA."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_runner.models import family
from maas_client.errors import BaseModelError
from maas_client.plan import Plan
from maas_client.spec.catalog import find_model

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def attach(model: Any, plan: Plan, *, name: str) -> PeftModel:
    """Put a fresh adapter on the model; only its weights have gradients.

    Args:
        model: the frozen base.
        plan: rank, scale, dropout and the seed of the adapter's start.
        name: what the adapter says that it belongs to.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    values = plan.values
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=values["lora_r"],
        lora_alpha=values["lora_alpha"],
        lora_dropout=values["lora_dropout"],
        use_rslora=values.get("use_rslora") or False,
        target_modules=sorted(targets(model, plan)),
    )
    model.name_or_path = name  # peft writes it down; it is a folder of this machine otherwise
    torch.manual_seed(plan.seed)
    with warnings.catch_warnings():
        # peft reads a property that transformers 5 has renamed; nothing is lost.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        return get_peft_model(model, config)


def targets(model: Any, plan: Plan) -> tuple[str, ...]:
    """The layers that an adapter covers: the catalogue's if the weights are that model's, else the family's.

    Raises:
        BaseModelError: the model lacks one of them; peft would leave it out without a word.
    """
    kind = family.architecture(model.config.model_type, plan.job.model.asset_name)
    entry = find_model(plan.job.model.asset_name)
    wanted = entry.lora_targets if entry and entry.architecture == kind.name else kind.lora_targets
    there = {name.rpartition(".")[2] for name, layer in model.named_modules() if _is_linear(layer)}
    absent = sorted(set(wanted) - there)
    if absent:
        raise BaseModelError(
            f"the model has no layer {', '.join(absent)} that LoRA could cover; it has "
            f"{', '.join(sorted(there))}",
            hint="Correct lora_targets of the catalogue's entry.",
        )
    return wanted


def _is_linear(layer: Any) -> bool:
    import torch

    return isinstance(layer, torch.nn.Linear)


def open_on(model: Any, folder: Path, *, name: str = "default") -> PeftModel:
    """Put a saved adapter on a base, or beside the adapters that a `PeftModel` has.

    Raises:
        BaseModelError: it is no adapter, a simulated one, or another model's.
    """
    from peft import PeftModel

    check(model, folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
            return model
        return PeftModel.from_pretrained(model, folder, adapter_name=name)


def check(model: Any, folder: Path) -> None:
    """Whether all of an adapter fits; peft leaves out what does not, with a warning.

    Raises:
        BaseModelError: it is no adapter, a simulated one, or another model's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, "pt") as stored:
            shapes = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118 - not a dict
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseModelError(
            f"{folder} is no adapter: {error}", hint=f"It needs {CONFIG} and {WEIGHTS}."
        ) from error
    if config.get("simulated"):
        raise BaseModelError(
            f"{folder} was simulated: nothing was trained", hint="Train it with the engine `train`."
        )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for key, shape in shapes.items():
        path, _, side = key.removesuffix(".weight").rpartition(".lora_")
        layer = _layer(base, path.removeprefix("base_model.model."))
        width = {"A": "in_features", "B": "out_features"}.get(side)
        if width is None or getattr(layer, width, None) != shape[side == "A"]:
            whose = config.get("base_model_name_or_path") or "it does not say which"
            raise BaseModelError(
                f"{folder} is an adapter of another model ({whose}): {key} does not fit"
            )
    if not shapes:
        raise BaseModelError(f"{folder} holds no tensors")


def _layer(model: Any, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors under the names that peft saves them with, sorted."""
    from peft import get_peft_model_state_dict

    # Embeddings are not trained; peft would ask the hub whether their size has changed.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: state[key].detach().contiguous() for key in sorted(state)}


def save(model: PeftModel, folder: Path) -> None:
    """Write the adapter in PEFT's layout, the same bytes for the same weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(model), folder / WEIGHTS, metadata={"format": "pt"})
    config = _plain(model.peft_config["default"].to_dict())
    config["inference_mode"] = True
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


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
