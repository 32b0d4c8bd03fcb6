"""The Phi family as data: every model that can be named, with the user's own among them."""

from __future__ import annotations

from collections.abc import Mapping

from maas_client.spec import catalog_file
from maas_client.spec.catalog_entry import Catalog, ModelEntry, Outsider, TokenFacts

__all__ = [
    "Catalog",
    "ModelEntry",
    "Outsider",
    "TokenFacts",
    "catalog",
    "find_model",
    "find_outsider",
    "template_text",
    "token_facts",
    "whole",
]


def whole() -> Catalog:
    """The built-in catalogue, and over it the user's own entries.

    Raises:
        SettingsError: the user's file is wrong; the error names file, model and key.
    """
    return catalog_file.load()


def catalog() -> Mapping[str, ModelEntry]:
    """Every model by its exact name; the user's own among them."""
    return whole().models


def find_model(name: str) -> ModelEntry | None:
    """The entry of that name; case does not matter, as on the service."""
    wanted = name.lower()
    return next((entry for entry in catalog().values() if entry.name.lower() == wanted), None)


def find_outsider(name: str) -> Outsider | None:
    """A model that is known and not done here, in any case of its name."""
    wanted = name.lower()
    known = whole().outsiders.values()
    return next((entry for entry in known if entry.name.lower() == wanted), None)


def token_facts(entry: ModelEntry) -> TokenFacts:
    """The tokenizer of a model's family."""
    return whole().tokenizers[entry.tokenizer]


def template_text(entry: ModelEntry) -> str:
    """The model's chat template, as Jinja."""
    return catalog_file.template(entry.template)
