"""Where this project keeps its own files on this machine: the stand-in model, the mock's state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def home() -> Path:
    """`$MAAS_HOME`, else `~/.cache/maas-finetune`. Not made here."""
    if given := os.environ.get("MAAS_HOME"):
        return Path(given).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "maas-finetune"


def mock_home() -> Path:
    """The mock server's store, certificates, and `server.json` while it runs.

    `$MAAS_MOCK_HOME`, else a folder under `home()`: tests and demos have a mock of their own.
    """
    if given := os.environ.get("MAAS_MOCK_HOME"):
        return Path(given).expanduser().resolve()
    return home() / "mock"


def stand_in_home() -> Path:
    """The stand-in model, converted once."""
    return home() / "stand-in"


OWN_BASES: Mapping[str, str] = {
    "stand-in": "stand-in/SmolLM2-135M-Instruct",
    "tiny": "tiny-random-phi3",
    "tiny-phi-3-small": "tiny-random-phi3-small",
}
"""Models that this project makes itself: the word that `--base` takes, and what their adapters call them.

None is a Phi of Microsoft's."""
