"""The Phi family as data: which models there are, their shape, defaults, bounds, regions and end."""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

REGISTRY = "azureml"
"""The registry that the models live in."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the registry."""

    name: str
    """Exact, with its case: `Phi-3-mini-4k-instruct`."""
    versions: tuple[str, ...]
    """Versions that can be fine-tuned, oldest first."""
    hub_id: str
    """Where the weights are on the Hugging Face hub."""
    architecture: str
    """`phi3` (transformers' Phi3ForCausalLM) or `phi3small`."""
    parameters: int
    context: int
    """Tokens."""
    lora_targets: tuple[str, ...]
    """Linear layers that an adapter covers; Phi-3's projections are fused."""
    end_token: str
    serverless: bool
    """Whether the serverless service fine-tunes it; else managed compute only."""
    tuning_regions: tuple[str, ...]
    deploy_regions: tuple[str, ...]
    minimum_sku: str
    """vCPU|GPU|GB of memory|GB of GPU memory for managed compute."""
    finetune_skus: tuple[str, ...]
    license: str
    bounds: Mapping[str, tuple[float, float]]
    """Hyperparameter -> lowest and highest value that the service takes."""
    defaults: Mapping[str, str]
    """The registry's `model_specific_defaults`."""
    inference_minimum_sku: str = ""
    """As `minimum_sku`, to answer with the model; empty where the registry's is not known."""
    inference_skus: tuple[str, ...] = ()
    retired: dt.date | None = None
    """From this day on the service refuses to fine-tune and to serve it."""
    replacement: str | None = None

    def asset_id(self, version: str | None = None) -> str:
        """`azureml://registries/azureml/models/<name>/versions/<version>`; the latest without one."""
        return f"azureml://registries/{REGISTRY}/models/{self.name}/versions/{version or self.versions[-1]}"

    def is_retired(self, day: dt.date) -> bool:
        return self.retired is not None and day >= self.retired


@cache
def catalog() -> Mapping[str, ModelEntry]:
    """Every model by its exact name."""
    text = resources.files("maas_client.spec").joinpath("catalog.toml").read_text(encoding="utf-8")
    return {name: _entry(name, raw) for name, raw in tomllib.loads(text)["model"].items()}


def find_model(name: str) -> ModelEntry | None:
    """The entry of that name; case does not matter, as on the service."""
    wanted = name.lower()
    return next((entry for entry in catalog().values() if entry.name.lower() == wanted), None)


def _entry(name: str, raw: Mapping[str, Any]) -> ModelEntry:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()
    }
    fields["bounds"] = {key: (low, high) for key, (low, high) in raw["bounds"].items()}
    if "retired" in raw:
        fields["retired"] = dt.date.fromisoformat(raw["retired"])
    return ModelEntry(name=name, **fields)
