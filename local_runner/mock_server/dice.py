"""Where the twin's ids, keys and chances come from: the system's randomness, or a seed's.

With a seed, the same requests in the same order give the same ids and keys, also after a restart:
how many were drawn is remembered.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid

from local_runner.mock_server.store import Store

_KIND, _KEY = "dice", "drawn"


class Dice:
    """Draws ids, keys and chances.

    Args:
        store: remembers how many were drawn.
        seed: None draws from the system, which nobody can foretell.
    """

    def __init__(self, store: Store, seed: int | None = None) -> None:
        self._store = store
        self.seed = seed

    def uuid(self) -> str:
        """An id in the form of a GUID."""
        return str(uuid.UUID(bytes=self._bytes()[:16], version=4))

    def key(self) -> str:
        """A key for an endpoint: 32 characters."""
        return self._bytes()[:16].hex()

    def chance(self) -> float:
        """From 0 to 1, 1 left out."""
        return int.from_bytes(self._bytes()[:7], "big") / 2**56

    def _bytes(self) -> bytes:
        if self.seed is None:
            return secrets.token_bytes(32)
        with self._store.transaction():
            drawn = (self._store.get(_KIND, _KEY) or {"count": 0})["count"] + 1
            self._store.put(_KIND, _KEY, {"count": drawn})
        return hashlib.sha256(f"{self.seed}/{drawn}".encode()).digest()
