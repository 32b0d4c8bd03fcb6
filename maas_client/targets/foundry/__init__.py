"""A service with OpenAI's fine-tuning wire: Microsoft Foundry, Azure OpenAI, OpenAI, and the mock of them."""

from __future__ import annotations

from maas_client.targets.foundry.target import FoundryTarget

__all__ = ["FoundryTarget"]
