"""Blobs on the disk: content in files of our own naming, the rest in the store.

A content never changes: what overwrites a blob is another file, and the store says in one transaction
which one counts. So a blob is whole or absent, whenever the server is killed; and as names never
become paths, no name can reach out of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from local_runner.mock_server.storage import drafts
from local_runner.mock_server.storage.drafts import Drafts
from local_runner.mock_server.storage.joining import Block, Source, Wanted, find, join
from local_runner.mock_server.storage.pieces import Pieces
from local_runner.mock_server.storage.upload import Upload
from local_runner.mock_server.store import Store

KIND = "blob"
_BLOCKS = "blob-blocks"
_WHOLE = "blob-"
_FEW, _MANY = 16, 512
"""Documents that a walk reads at once, at first and at most."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a client says of a blob besides its content."""

    metadata: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """Content-Type and its like, as they go out again."""
    tier: str = ""
    md5: str = ""
    """Of the whole content, as the client says; empty where it says nothing."""


@dataclass(frozen=True, slots=True)
class Blob:
    """What is known of a blob besides its content."""

    container: str
    name: str
    size: int
    etag: str
    modified: float
    md5: str
    """base64; empty where nobody knows it, as after a list of blocks."""
    file: str
    """The content's file in the folder."""
    metadata: dict[str, str] = field(default_factory=dict)
    blocks: int = 0
    """How many it was made of; none: it came whole."""
    created: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    tier: str = ""
    pieces: list[list[int]] = field(default_factory=list)
    """Where in the file the content is, start and size; none: everywhere."""


Allow = Callable[[Blob | None], None]
"""Raises where the blob that is there may not be overwritten."""


def anything(_: Blob | None) -> None:
    """Allow it."""


class BlobStore:
    """Every container of the one storage account."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder
        self._store = store
        folder.mkdir(parents=True, exist_ok=True)
        self.drafts = Drafts(folder)
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
            stream = self.path(blob).open("rb") if blob else None
        if blob is None or stream is None:
            return None
        if blob.pieces:
            return blob, BufferedReader(Pieces(stream, blob.pieces), 1 << 20)
        return blob, stream

    def link(self, container: str, name: str, target: Path) -> Blob | None:
        """Give the content a second name, which outlives the blob."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._store.transaction():
            blob = self.get(container, name)
            if blob and not blob.pieces:
                target.hardlink_to(self.path(blob))
                return blob
        if found := self.open(container, name):
            with found[1] as stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
        return blob

    def put(
        self, container: str, name: str, content: bytes, metadata: dict[str, str] | None = None
    ) -> Blob:
        """Write a blob from memory."""
        upload = self.begin()
        upload.hold([content])
        return self.commit(container, name, upload, Label(metadata or {}))

    def put_file(self, container: str, name: str, file: Path) -> Blob:
        """Write a blob from a file."""
        upload = self.begin()
        with file.open("rb") as stream:
            for part in iter(lambda: stream.read(1 << 20), b""):
                upload.write([part])
        return self.commit(container, name, upload, Label())

    def begin(self) -> Upload:
        """Room for content that comes in pieces."""
        path = self._folder / f"upload-{uuid.uuid4().hex}"

        def make() -> tuple[int, int]:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), 0

        return Upload(
            make, hashed=True, on_abandon=lambda: path.unlink(missing_ok=True), owner=path
        )

    def commit(
        self, container: str, name: str, upload: Upload, label: Label, *, allow: Allow = anything
    ) -> Blob:
        """Give what was uploaded its name, if what is there allows it."""
        md5 = upload.finish()
        upload.sync()
        upload.close()
        assert isinstance(upload.owner, Path)  # noqa: S101 - begin() made it
        made = _new(container, name, upload.size, replace(label, md5=md5))
        upload.owner.replace(self.path(made))
        blob = self._name_new(made, allow)
        self.drafts.drop(container, name)
        return blob

    def change(self, blob: Blob, *, allow: Allow = anything, **fields: Any) -> Blob:
        """Set what is not content.

        Raises:
            KeyError: the blob has gone meanwhile.
        """
        with self._store.transaction():
            latest = self.get(blob.container, blob.name)
            allow(latest)
            if latest is None:
                raise KeyError(blob.name)
            changed = replace(latest, etag=_stamp(), modified=time.time(), **fields)
            self._store.put(KIND, _key(blob.container, blob.name), asdict(changed))
        return changed

    def delete(self, blob: Blob, *, allow: Allow = anything) -> None:
        key = _key(blob.container, blob.name)
        with self._store.transaction():
            latest = self.get(blob.container, blob.name)
            allow(latest)
            self._store.delete(KIND, key)
            self._store.delete(_BLOCKS, key)
        if latest is not None:
            self.path(latest).unlink(missing_ok=True)

    def walk(
        self, container: str, *, prefix: str = "", delimiter: str = "", start: str = ""
    ) -> Iterator[tuple[str, Blob | None]]:
        """Names in order, from `start` on; those alike up to the delimiter as one, without a blob."""
        low, high = _key(container, max(prefix, start)), _after(_key(container, prefix))
        most = _FEW
        while True:
            found = self._store.between(KIND, low, high, limit=most)
            for doc in found:
                blob = Blob(**doc.body)
                cut = blob.name.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:  # whatever else begins so is passed over, not read
                    common = blob.name[: cut + len(delimiter)]
                    yield common, None
                    low, most = _after(_key(container, common)), _FEW
                    break
                yield blob.name, blob
                low = f"{doc.key}\0"
            else:
                if len(found) < most:
                    return
                most = min(most * 2, _MANY)

    def copy(self, source: Blob, container: str, name: str, label: Label, *, allow: Allow) -> Blob:
        """Another blob with the same content, which is not copied."""
        with self._store.transaction():
            latest = self.get(source.container, source.name) or source
            made = _new(container, name, latest.size, replace(label, md5=latest.md5))
            made = replace(made, pieces=latest.pieces)
            self.path(made).hardlink_to(self.path(latest))
        return self._name_new(made, allow)

    def blocks(self, container: str, name: str) -> tuple[list[Block], list[Block]]:
        """Those that the blob is made of, and those that wait for their list."""
        with self.drafts.held(container, name) as draft:
            waiting = [Block(key, *place) for key, place in sorted(draft.blocks.items())]
        return self._committed(self.get(container, name)), waiting

    def commit_blocks(
        self,
        container: str,
        name: str,
        wanted: Sequence[Wanted],
        label: Label,
        *,
        allow: Allow = anything,
    ) -> Blob:
        """Make a blob of its blocks, in the order of the list.

        Raises:
            KeyError: a block of the list is not there.
        """
        with self.drafts.held(container, name) as draft:
            before = self.get(container, name)
            allow(before)  # before anything is copied
            old = {block.id: block for block in self._committed(before)}
            new = {key: Block(key, *place) for key, place in draft.blocks.items()}
            there = self.path(before) if before else draft.content
            found = find(wanted, Source(draft.content, new), Source(there, old))
            made = _new(container, name, sum(block.size for _, block in found), label)
            try:
                blocks, pieces = join(found, self.path(made))
                made = replace(made, blocks=len(blocks), pieces=pieces)
                blob = self._name(made, allow, blocks)
            except FileNotFoundError as error:  # what is there was overwritten meanwhile
                raise KeyError(name) from error
            except BaseException:
                self.path(made).unlink(missing_ok=True)
                raise
            draft.end()
        return blob

    def _name_new(self, made: Blob, allow: Allow) -> Blob:
        """As `_name`; what may not have the name goes."""
        try:
            return self._name(made, allow)
        except BaseException:
            self.path(made).unlink(missing_ok=True)
            raise

    def _name(self, made: Blob, allow: Allow, blocks: Sequence[Block] = ()) -> Blob:
        """Let the blob be the one of its name."""
        key = _key(made.container, made.name)
        with self._store.transaction():
            before = self.get(made.container, made.name)
            allow(before)
            if not self.path(made).exists():  # the whole state was replaced meanwhile
                raise FileNotFoundError(errno.ENOENT, "the content has gone", made.file)
            if before is not None:
                made = replace(made, created=before.created or before.modified)
            self._store.put(KIND, key, asdict(made))
            if blocks:
                rows = [[block.id, block.start, block.size] for block in blocks]
                self._store.put(_BLOCKS, key, {"rows": rows})
            elif before is not None and before.blocks:
                self._store.delete(_BLOCKS, key)
        if before is not None:
            with contextlib.suppress(OSError):  # the next start sweeps what stays
                self.path(before).unlink()
        return made

    def _committed(self, blob: Blob | None) -> list[Block]:
        body = self._store.get(_BLOCKS, _key(blob.container, blob.name)) if blob else None
        return [Block(*row) for row in body["rows"]] if body else []

    def _sweep(self) -> None:
        """Take away what a killed server left: uploads without an end, contents without a name."""
        known = {doc.body["file"] for doc in self._store.list(KIND)}
        for path in self._folder.iterdir():
            if not path.name.startswith(drafts.PREFIX) and path.name not in known:
                path.unlink()
        self.drafts.sweep()

    def list(self, container: str, prefix: str = "") -> list[Blob]:
        """Blobs by their names, in order."""
        return [blob for _, blob in self.walk(container, prefix=prefix) if blob]


def _new(container: str, name: str, size: int, label: Label) -> Blob:
    now = time.time()
    return Blob(
        container,
        name,
        size,
        _stamp(),
        now,
        label.md5,
        f"{_WHOLE}{uuid.uuid4().hex}",
        label.metadata,
        created=now,
        headers=label.headers,
        tier=label.tier,
    )


def _stamp() -> str:
    return f'"0x{time.time_ns():X}"'


def _key(container: str, name: str) -> str:
    return f"{container}/{name}"


def _after(text: str) -> str:
    """The least text that is greater than all that begin with this one."""
    last = ord(text[-1]) + 1
    return text[:-1] + chr(0xE000 if last == 0xD800 else last)
