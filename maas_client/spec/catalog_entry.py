"""What the catalogue says of a model and of its tokens. Data only."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

REGISTRY = "azureml"
"""The registry that the models live in."""

Architecture = Literal["phi3", "phi3small", "phimoe"]
"""transformers' Phi3ForCausalLM, ours, transformers' PhimoeForCausalLM."""

_STRICT = {"extra": "forbid"}
"""Pydantic's: an unknown key in a table is a fault, not left out."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's config.json says of its size."""

    __pydantic_config__ = _STRICT

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    """Inner width of a feed-forward layer; of one expert, where there are several."""
    vocabulary: int
    """Rows of the embedding: the tokens, and what pads them to a round number."""
    tied: bool
    """Whether the output layer is the embedding."""
    experts: int = 1


@dataclass(frozen=True, slots=True)
class Price:
    """What the model's own serverless endpoint costs, as far as it is known. None is `unknown`."""

    __pydantic_config__ = _STRICT

    source: str
    date: dt.date
    """When the source was read."""
    input_usd: float | None = None
    """USD for a million tokens that are read."""
    output_usd: float | None = None
    """USD for a million tokens that are written."""
    training_usd: float | None = None
    """USD for a million trained tokens."""
    hosting_usd: float | None = None
    """USD for an hour of a tuned model's endpoint."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """Placeholder tokens: `count` names and ids in a row."""

    __pydantic_config__ = _STRICT

    name: str
    """With `{}` in the number's place."""
    first: int
    """The first name's number."""
    id: int
    """The first name's id."""
    count: int


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """A family's tokenizer, beyond its ordinary pieces."""

    name: str
    pieces: str
    """The ordinary pieces, in words."""
    tokens: Mapping[str, int]
    """Tokens with a meaning -> id."""
    bos: str
    eos: str
    pad: str
    ranks: str = ""
    """The tiktoken encoding whose ranks the ordinary pieces are; empty where they are not."""
    numbered: tuple[Numbered, ...] = ()
    strip_left: tuple[str, ...] = ()
    """Tokens that take the white space before them along."""
    strip_right: tuple[str, ...] = ()
    """Tokens that take the white space behind them along: a template's newline never reaches the model."""
    strip_numbered: bool = False
    """Whether the placeholders strip on both sides, too."""
    unverified: tuple[str, ...] = ()
    """What is here from memory, not from a source."""

    def all_tokens(self) -> dict[str, int]:
        """Every token that is not an ordinary piece -> id, by id."""
        made = {
            row.name.format(row.first + step): row.id + step
            for row in self.numbered
            for step in range(row.count)
        }
        return dict(sorted({**self.tokens, **made}.items(), key=lambda pair: pair[1]))


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the registry, or of the user's own."""

    name: str
    """Exact, with its case: `Phi-3-mini-4k-instruct`."""
    versions: tuple[str, ...]
    """Versions that can be fine-tuned, oldest first."""
    hub_id: str
    """Where the weights are on the Hugging Face hub."""
    architecture: Architecture
    parameters: int
    shape: Shape
    context: int
    """Tokens."""
    lora_targets: tuple[str, ...]
    """Linear layers that an adapter covers; Phi-3's projections are fused."""
    tokenizer: str
    """The name of its `TokenFacts`."""
    template: str
    """The chat template's file, without `.jinja`; it is used where a model's folder has none."""
    end_token: str
    """What ends a turn."""
    stop_tokens: tuple[str, ...]
    """What ends an answer, where a model's folder has no generation_config.json."""
    serverless: bool
    """Whether the serverless service fine-tunes it."""
    managed: bool
    """Whether managed compute does."""
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
    max_output: int | None = None
    """Tokens of an answer on the serverless endpoint; None is `unknown`."""
    inference_minimum_sku: str = ""
    """As `minimum_sku`, to answer with the model; empty where the registry's is not known."""
    inference_skus: tuple[str, ...] = ()
    retired: dt.date | None = None
    """From this day on the service refuses to fine-tune and to serve it."""
    replacement: str | None = None
    price: Price | None = None
    unverified: tuple[str, ...] = ()
    """Fields that no source at hand confirms."""
    note: str = ""
    """Why a user's entry is there; needed where it takes the place of one of ours."""
    origin: str = field(default="built in", compare=False)
    """The file that it stands in."""

    def asset_id(self, version: str | None = None) -> str:
        """`azureml://registries/azureml/models/<name>/versions/<version>`; the latest without one."""
        return f"azureml://registries/{REGISTRY}/models/{self.name}/versions/{version or self.versions[-1]}"

    def is_retired(self, day: dt.date) -> bool:
        return self.retired is not None and day >= self.retired


@dataclass(frozen=True, slots=True)
class Outsider:
    """A model that people will name and that is not done here, with the reason."""

    name: str
    hub_id: str
    why: str
    instead: str
    """The next step."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All that is known, by exact names."""

    models: Mapping[str, ModelEntry]
    tokenizers: Mapping[str, TokenFacts]
    outsiders: Mapping[str, Outsider]
