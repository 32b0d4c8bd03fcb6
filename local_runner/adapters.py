"""What is trained, by peft's names: an adapter on a frozen base, or every weight of it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_runner.methods import configs, fit, starts
from local_runner.methods.prompts import has_virtual_tokens
from local_runner.models import base as bases
from local_runner.models import family
from maas_client.errors import BaseModelError
from maas_client.plan import Plan
from maas_client.spec.catalog import find_model
from maas_client.spec.methods import method_of

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
WHOLE = "model.safetensors"
_BEGUN = "weights_at_start"
"""Where a `PeftModel` keeps what a start that changes the base began with."""


def load_base(base: bases.Base, plan: Plan) -> Any:
    """The base as the plan wants it held: precision, 4 or 8 bits."""
    with _peft_quiet():
        model = bases.load(
            base,
            dtype=bases.held_in(plan) or configs.weight_type(plan.values),
            quantization=configs.quantization(plan.values),
        )
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # It would round the scales of the 4-bit code once more at the first evaluation, for good:
            # a resumed run, which does not evaluate first, would train another base.
            layer.support_avx512bf16_for_cpu = False
    return model


def attach(model: Any, plan: Plan, *, name: str) -> Any:
    """Give the model what the plan trains: a fresh adapter, or gradients for all of it.

    Args:
        model: the frozen base.
        plan: the method, its values, and the seed of the adapter's start.
        name: what the adapter says that it belongs to.

    Returns:
        A `PeftModel`; or the model itself, where every weight is trained.

    Raises:
        BaseModelError: the method does not go with the model's shape.
    """
    import torch

    values: dict[str, Any] = plan.values
    torch.manual_seed(plan.seed)
    method = method_of(values)
    if method == "full":
        return model.requires_grad_(requires_grad=True)
    covered = targets(model, plan)
    if method == "oft":
        configs.check_blocks(model, covered, int(values["oft_block_size"]))
    config = configs.make_config(values, covered, seed=plan.seed)
    model.name_or_path = name  # peft writes it down; it is a folder of this machine otherwise
    with _peft_quiet():
        from peft import get_peft_model

        made = get_peft_model(model, config)
    if starts.changes_the_base(config):
        setattr(made, _BEGUN, {key: tensor.clone() for key, tensor in tensors(made).items()})
    return made


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


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a whole model, and no adapter of one."""
    return (folder / "config.json").exists() and not (folder / CONFIG).exists()


def open_on(model: Any, folder: Path, *, name: str = "default") -> Any:
    """Put a saved adapter on a base, or beside the adapters that a `PeftModel` has.

    A folder that holds a whole model is loaded by itself.

    Raises:
        BaseModelError: it is no adapter, a simulated one, or another model's.
    """
    if is_whole(folder):
        return bases.load(bases.resolve(str(folder), model=""))
    check(model, folder)
    with _peft_quiet():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
            return model
        return PeftModel.from_pretrained(model, folder, adapter_name=name)


def kind_of(folder: Path) -> str:
    """peft's word for the method of a checked adapter."""
    return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"])


def release(model: Any, opened: Any) -> Any:
    """The base again, without what `open_on` has put on it."""
    if opened is model or not hasattr(opened, "unload"):
        return model
    return model if has_virtual_tokens(opened) else opened.unload()


def check(model: Any, folder: Path) -> None:
    """Whether all of an adapter fits; peft leaves out what does not, with a warning.

    Raises:
        BaseModelError: it is no adapter, a simulated one, or another model's.
    """
    from safetensors import SafetensorError, safe_open

    if is_whole(folder):
        return  # it says for itself what it is, when it is loaded
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
    key = fit.misfit(base, config, shapes)
    if key is not None:
        whose = config.get("base_model_name_or_path") or "it does not say which"
        raise BaseModelError(
            f"{folder} is an adapter of another model ({whose}): {key} does not fit"
        )
    if not shapes:
        raise BaseModelError(f"{folder} holds no tensors")


def tensors(model: Any) -> dict[str, Tensor]:
    """What is trained, sorted, under the names that peft saves an adapter's tensors with."""
    if not hasattr(model, "peft_config"):
        return {key: weight.detach() for key, weight in sorted(model.named_parameters())}
    from peft import get_peft_model_state_dict

    # Embeddings are not trained; peft would ask the hub whether their size has changed.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: state[key].detach().contiguous() for key in sorted(state)}


def save(model: Any, folder: Path) -> None:
    """Write an adapter in PEFT's layout, or a whole model; the same bytes for the same weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if not hasattr(model, "peft_config"):
        model.save_pretrained(folder)
        return
    state, config = tensors(model), _plain(model.peft_config["default"].to_dict())
    begun = getattr(model, _BEGUN, None)
    if begun is not None:
        state = starts.beside_plain_base(state, begun)
        config = starts.config_beside_plain_base(config)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config["inference_mode"] = True
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def restore(model: Any, file: Path) -> None:
    """Put saved tensors back.

    Raises:
        BaseModelError: they are not those of this model and method.
    """
    from safetensors.torch import load_file

    state, own = load_file(file), tensors(model)
    here = {key: tuple(tensor.shape) for key, tensor in own.items()}
    there = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if here != there:
        other = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
        raise BaseModelError(
            f"{file} holds what another method or model has trained: {other[0]} does not fit"
        )
    if not hasattr(model, "peft_config"):
        model.load_state_dict(state, strict=False)  # a tied head is the embeddings, by its name
        return
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, state)


def merge(model: Any, base: bases.Base, adapter: Path) -> Any:
    """The base with the adapter in its matrices, in the base's own precision.

    Args:
        model: the trained one, which is used up.
        base: where its base came from.
        adapter: the same adapter, saved.
    """
    import torch

    inner = model.get_base_model()
    if getattr(inner, "is_quantized", False) or inner.dtype is not torch.float32:
        # Into the weights as they are, not as they were rounded: a merge would round them again.
        inner = bases.load(base)
        model = open_on(inner, adapter)
    return model.merge_and_unload()


@contextmanager
def _peft_quiet() -> Iterator[None]:
    """Without what peft and bitsandbytes say of themselves while nothing is wrong."""
    # It misses a faster kernel from a hub, each time it is imported.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # peft reads a property that transformers 5 has renamed; nothing is lost.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        yield


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON can hold it, in an order that does not depend on the process."""
    return {
        key: sorted(value) if isinstance(value, set | frozenset) else value
        for key, value in config.items()
    }
