"""Kaito, the Kubernetes operator that tunes models on a cluster's GPU nodes."""

from __future__ import annotations

from maas_client.targets.kaito.target import KaitoTarget

__all__ = ["KaitoTarget"]
