"""What the service remembers: documents by kind and key, in SQLite. Knows no HTTP.

Every change is a transaction on the disk before the answer goes out, so a killed server loses nothing
that it has promised.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Body = dict[str, Any]
_STATE = "json_extract(body, '$.state')"


@dataclass(frozen=True, slots=True)
class Document:
    """A stored thing."""

    key: str
    body: Body
    order: int
    """Rises with creation."""


class Store:
    """One connection, one writer at a time."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS documents ("
            " place INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key TEXT NOT NULL,"
            " body TEXT NOT NULL, UNIQUE (kind, key))"
        )
        self._db.execute(f"CREATE INDEX IF NOT EXISTS states ON documents (kind, {_STATE})")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; others wait."""
        with self._lock:
            if self._db.in_transaction:
                yield  # part of the one that is open
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def get(self, kind: str, key: str) -> Body | None:
        """The document, or None."""
        with self._lock:
            row = self._db.execute(
                "SELECT body FROM documents WHERE kind = ? AND key = ?", (kind, key)
            ).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, kind: str, key: str, body: Body) -> None:
        """Make or replace; a replaced document keeps its place."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO documents (kind, key, body) VALUES (?, ?, ?)"
                " ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body",
                (kind, key, json.dumps(body)),
            )

    def change(self, kind: str, key: str, **fields: Any) -> Body:
        """Set some fields of a document that is there."""
        with self.transaction():
            body = self.get(kind, key)
            if body is None:
                raise KeyError(key)
            body |= fields
            self.put(kind, key, body)
        return body

    def delete(self, kind: str, key: str) -> bool:
        """Whether it was there."""
        with self.transaction():
            done = self._db.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))
        return done.rowcount > 0

    def list(
        self,
        kind: str,
        *,
        prefix: str = "",
        states: Sequence[str] = (),
        before: int | None = None,
        limit: int = -1,
    ) -> list[Document]:
        """The newest first. `before` pages: only places below it; `states`: only in one of them."""
        among = f" AND {_STATE} IN ({', '.join('?' * len(states))})" if states else ""
        with self._lock:
            rows = self._db.execute(
                "SELECT key, body, place FROM documents WHERE kind = ? AND substr(key, 1, ?) = ?"  # noqa: S608
                f" AND (? IS NULL OR place < ?){among} ORDER BY place DESC LIMIT ?",
                (kind, len(prefix), prefix, before, before, *states, limit),
            ).fetchall()
        return [Document(key, json.loads(body), place) for key, body, place in rows]

    def clear(self) -> None:
        with self.transaction():
            self._db.execute("DELETE FROM documents")

    def close(self) -> None:
        with self._lock:
            self._db.close()
