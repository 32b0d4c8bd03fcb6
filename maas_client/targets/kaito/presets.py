"""The models that Kaito tunes, by its presets, and the GPU memory that it states for each. Data only."""

from __future__ import annotations

from collections.abc import Mapping

from maas_client.spec.catalog import ModelEntry

PRESETS: Mapping[str, int] = {
    "phi-3-mini-4k-instruct": 72,
    "phi-3-mini-128k-instruct": 72,
    "phi-3-medium-4k-instruct": 80,
    "phi-3-medium-128k-instruct": 80,
    "phi-3.5-mini-instruct": 72,
    "phi-4": 80,
    "phi-4-mini-instruct": 72,
}
"""Preset -> GiB of one GPU that Kaito states for tuning. Source: its model registrations, v0.12."""


def preset(entry: ModelEntry) -> str | None:
    """Kaito's name of a model of the catalogue, or None where it has no preset for tuning."""
    name = entry.name.lower()
    return name if name in PRESETS else None
