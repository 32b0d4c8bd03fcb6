"""Blobs on the disk: content in files of our own naming, the rest in the store.

A content never changes: what overwrites a blob is another file, and the store says in one transaction
which one counts. So a blob is whole or absent, whenever the server is killed; and as names never
become paths, no name can reach out of the folder.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from tempfile import mkstemp

from local_runner.mock_server.store import Store

KIND = "blob"
_WHOLE, _BLOCK = "blob-", "block-"


@dataclass(frozen=True, slots=True)
class Blob:
    """What is known of a blob besides its content."""

    container: str
    name: str
    size: int
    etag: str
    modified: float
    md5: str
    """base64"""
    file: str
    """The content's file in the folder."""
    metadata: dict[str, str] = field(default_factory=dict)
    blocks: str = ""
    """Digest of the list of blocks that it was made of."""


Allow = Callable[[Blob | None], None]
"""Raises where the blob that is there may not be overwritten."""
_BLOCK_SECONDS = 7 * 24 * 3600
"""How long blocks wait for their list, as on the service."""


class BlobStore:
    """Every container of the one storage account."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder
        self._store = store
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def get(self, container: str, name: str) -> Blob | None:
        body = self._store.get(KIND, _key(container, name))
        return Blob(**body) if body else None

    def path(self, blob: Blob) -> Path:
        """Where the content is."""
        return self._folder / blob.file

    def open(self, container: str, name: str) -> tuple[Blob, BufferedReader] | None:
        """The blob and its content, which stays readable even if it is overwritten now."""
        with self._store.transaction():
            blob = self.get(container, name)
            return (blob, self.path(blob).open("rb")) if blob else None

    def link(self, container: str, name: str, target: Path) -> Blob | None:
        """Give the content a second name, which outlives the blob."""
        with self._store.transaction():
            if blob := self.get(container, name):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(self.path(blob))
        return blob

    def put(
        self, container: str, name: str, content: bytes, metadata: dict[str, str] | None = None
    ) -> Blob:
        """Write a blob from memory."""
        upload = self.begin()
        upload.write(content)
        return self.commit(container, name, upload, metadata or {})

    def put_file(self, container: str, name: str, file: Path) -> Blob:
        """Write a blob from a file."""
        upload = self.begin()
        with file.open("rb") as stream:
            for part in iter(lambda: stream.read(1 << 20), b""):
                upload.write(part)
        return self.commit(container, name, upload, {})

    def begin(self) -> Upload:
        """Room for content that comes in pieces."""
        return Upload(self._folder)

    def commit(
        self,
        container: str,
        name: str,
        upload: Upload,
        metadata: dict[str, str],
        *,
        blocks: str = "",
        allow: Allow = lambda _: None,
    ) -> Blob:
        """Give what was uploaded its name, if what is there allows it."""
        size, md5 = upload.finish()
        file = f"{_WHOLE}{uuid.uuid4().hex}"
        stamp = f'"0x{time.time_ns():X}"'
        blob = Blob(container, name, size, stamp, time.time(), md5, file, metadata, blocks)
        with self._store.transaction():
            before = self.get(container, name)
            allow(before)
            upload.path.replace(self.path(blob))
            self._store.put(KIND, _key(container, name), asdict(blob))
        if before is not None:
            self.path(before).unlink(missing_ok=True)
        return blob

    def set_metadata(self, blob: Blob, metadata: dict[str, str]) -> Blob:
        with self._store.transaction():
            latest = self.get(blob.container, blob.name) or blob
            changed = replace(latest, metadata=metadata, etag=f'"0x{time.time_ns():X}"')
            self._store.put(KIND, _key(blob.container, blob.name), asdict(changed))
        return changed

    def delete(self, blob: Blob) -> None:
        self._store.delete(KIND, _key(blob.container, blob.name))
        self.path(blob).unlink(missing_ok=True)

    def list(self, container: str, prefix: str = "") -> list[Blob]:
        """Blobs by their names, in order."""
        found = [Blob(**doc.body) for doc in self._store.list(KIND, prefix=_key(container, prefix))]
        return sorted(found, key=lambda blob: blob.name)

    def put_block(self, container: str, name: str, block: str, upload: Upload) -> None:
        """Keep a piece of a blob until the list of its pieces comes."""
        upload.finish()
        upload.path.replace(self._block(container, name, block))

    def commit_blocks(
        self,
        container: str,
        name: str,
        blocks: Sequence[str],
        metadata: dict[str, str],
        *,
        allow: Allow = lambda _: None,
    ) -> Blob:
        """Make a blob of its pieces, in the order of the list; sent again, the list changes nothing.

        Raises:
            KeyError: a piece of the list was never sent.
        """
        pieces = [self._block(container, name, block) for block in blocks]
        digest = hashlib.sha256("\n".join(blocks).encode()).hexdigest()
        if missing := [piece for piece in pieces if not piece.exists()]:
            before = self.get(container, name)
            if before is not None and before.blocks == digest:
                return before  # the reply to the first one was lost
            raise KeyError(missing[0].name)
        upload = self.begin()
        for piece in pieces:
            with piece.open("rb") as stream:
                shutil.copyfileobj(stream, upload, 1 << 20)
        blob = self.commit(container, name, upload, metadata, blocks=digest, allow=allow)
        for piece in pieces:
            piece.unlink(missing_ok=True)
        return blob

    def _sweep(self) -> None:
        """Take away what a killed server left: uploads without an end, contents without a name."""
        known = {doc.body["file"] for doc in self._store.list(KIND)}
        for path in self._folder.iterdir():
            if path.name.startswith(_BLOCK):
                stale = path.stat().st_mtime < time.time() - _BLOCK_SECONDS
            else:
                stale = path.name not in known
            if stale:
                path.unlink()

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def _block(self, container: str, name: str, block: str) -> Path:
        text = f"{_key(container, name)}\0{block}"
        return self._folder / f"{_BLOCK}{hashlib.sha256(text.encode()).hexdigest()}"


class Upload:
    """Content on its way to a name; constant memory."""

    def __init__(self, folder: Path) -> None:
        handle, name = mkstemp(prefix="upload-", dir=folder)
        self._stream = os.fdopen(handle, "wb")
        self._digest = hashlib.md5(usedforsecurity=False)  # what the protocol has
        self._size = 0
        self.path = Path(name)

    def write(self, part: bytes) -> int:
        self._digest.update(part)
        self._size += len(part)
        return self._stream.write(part)

    def finish(self) -> tuple[int, str]:
        """Size, and MD5 in base64; the content is on the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return self._size, base64.b64encode(self._digest.digest()).decode()

    def abandon(self) -> None:
        self._stream.close()
        self.path.unlink(missing_ok=True)


def _key(container: str, name: str) -> str:
    return f"{container}/{name}"
