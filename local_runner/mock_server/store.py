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
_TABLE = (
    "CREATE TABLE IF NOT EXISTS documents ("
    " place INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key TEXT NOT NULL,"
    " body TEXT NOT NULL, UNIQUE (kind, key))"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A stored thing."""

    key: str
    body: Body
    order: int
    """Rises with creation."""


class Store:
    """One connection that writes, one writer at a time; another one reads, and waits for nobody."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(_TABLE)
        self._db.execute(f"CREATE INDEX IF NOT EXISTS states ON documents (kind, {_STATE})")
        self._reader = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._reader.execute("PRAGMA query_only=ON")
        self._read_lock = threading.Lock()
        self._writer: int | None = None
        """The thread that has a transaction open."""

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The connection to read from: a transaction sees its own changes, all others what is done."""
        if self._writer == threading.get_ident():
            yield self._db
        else:
            with self._read_lock:
                yield self._reader

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile; for what is more than one transaction."""
        with self._lock:
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; others wait."""
        with self._lock:
            if self._db.in_transaction:
                yield  # part of the one that is open
                return
            self._db.execute("BEGIN IMMEDIATE")
            self._writer = threading.get_ident()
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._writer = None

    def get(self, kind: str, key: str) -> Body | None:
        """The document, or None."""
        with self._reading() as db:
            row = db.execute(
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

    def between(self, kind: str, low: str, high: str, *, limit: int = -1) -> list[Document]:
        """By their keys, in order: from the low one on, to before the high one."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT key, body, place FROM documents WHERE kind = ? AND key >= ? AND key < ?"
                " ORDER BY key LIMIT ?",
                (kind, low, high, limit),
            ).fetchall()
        return [Document(key, json.loads(body), place) for key, body, place in rows]

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
        with self._reading() as db:
            rows = db.execute(
                "SELECT key, body, place FROM documents WHERE kind = ? AND substr(key, 1, ?) = ?"  # noqa: S608
                f" AND (? IS NULL OR place < ?){among} ORDER BY place DESC LIMIT ?",
                (kind, len(prefix), prefix, before, before, *states, limit),
            ).fetchall()
        return [Document(key, json.loads(body), place) for key, body, place in rows]

    def count(self, kind: str, *, states: Sequence[str] = ()) -> int:
        """How many there are; `states`: only in one of them."""
        among = f" AND {_STATE} IN ({', '.join('?' * len(states))})" if states else ""
        with self._reading() as db:
            row = db.execute(
                f"SELECT count(*) FROM documents WHERE kind = ?{among}",  # noqa: S608
                (kind, *states),
            ).fetchone()
        return int(row[0])

    def copy_to(self, file: Path) -> None:
        """Write everything to another file."""
        other = sqlite3.connect(file)
        try:
            # Line by line, and not with SQLite's backup: the caller's transaction may be open.
            other.execute(_TABLE)
            rows = self._db.execute("SELECT place, kind, key, body FROM documents")
            other.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", rows)
            other.commit()
        finally:
            other.close()

    def copy_from(self, file: Path) -> None:
        """Have what another file has, and nothing else."""
        other = sqlite3.connect(file)
        try:
            rows = other.execute("SELECT place, kind, key, body FROM documents").fetchall()
        finally:
            other.close()
        with self.transaction():
            self._db.execute("DELETE FROM documents")
            self._db.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", rows)

    def clear(self) -> None:
        with self.transaction():
            self._db.execute("DELETE FROM documents")

    def close(self) -> None:
        with self._lock, self._read_lock:
            self._db.close()
            self._reader.close()
