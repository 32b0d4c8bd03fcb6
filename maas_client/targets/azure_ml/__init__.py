"""Azure ML as a target: a real workspace and its mock alike. Imports no azure; the worker does."""

from __future__ import annotations

from maas_client.targets.azure_ml.target import AzureMLTarget

__all__ = ["AzureMLTarget"]
