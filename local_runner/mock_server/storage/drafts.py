"""Blocks that wait for their list: one file for each blob to be, and an index of what lies where in it.

A block gets its place when it is announced, so that many are written at once; and as the list then only
names places, making a blob of its blocks copies nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from local_runner.mock_server.storage.upload import Upload

PREFIX = "draft-"
_SECONDS = 7 * 24 * 3600
"""How long blocks wait, as on the service."""

Place = tuple[int, int]
"""Where in a file something starts, and its size."""


class Draft:
    """The blocks of one blob to be. It ends when its list comes; what is on its way then joins the next."""

    def __init__(self, folder: Path, container: str, name: str) -> None:
        self.folder = folder
        self._name = {"container": container, "name": name}
        self.lock = threading.RLock()
        self.ended = False
        self.blocks: dict[str, Place] = {}
        self._end = 0
        if self._index.exists():
            self._load()

    @property
    def content(self) -> Path:
        return self.folder / "content"

    @property
    def _index(self) -> Path:
        return self.folder / "index"

    def reserve(self, size: int) -> tuple[int, int]:
        """A handle of the file, and where in it there is room."""
        with self.lock:
            if not self._index.exists():
                self.folder.mkdir(exist_ok=True)
                new = self.folder / "index.new"
                new.write_text(json.dumps(self._name) + "\n", encoding="utf-8")
                new.replace(self._index)
            start, self._end = self._end, self._end + size
            return os.open(self.content, os.O_RDWR | os.O_CREAT, 0o600), start

    def release(self, place: Place) -> None:
        """Give back room that was not used, if it is the last."""
        with self.lock:
            start, size = place
            if not self.ended and start + size == self._end and place not in self.blocks.values():
                self._end = start
                os.truncate(self.content, start)
                if start == 0:  # nothing came, and nothing is on its way
                    self.end()

    def keep(self, block: str, place: Place) -> None:
        """What lies there is a block. A killed server knows it again; a torn last line never was."""
        line = (json.dumps([block, *place]) + "\n").encode()
        with self.lock, self._index.open("ab", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            if stream.write(line) < len(line):  # the disk is full: half a line would spoil the next
                stream.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.blocks[block] = place

    def end(self) -> None:
        with self.lock:
            self.ended = True
            shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> None:
        whole, _, torn = self._index.read_bytes().rpartition(b"\n")
        if torn:
            os.truncate(self._index, len(whole) + 1)
        for line in whole.split(b"\n")[1:]:
            block, start, size = json.loads(line)
            self.blocks[block] = (start, size)
        ends = [start + size for start, size in self.blocks.values()]
        written = self.content.stat().st_size if self.content.exists() else 0
        self._end = max([written, *ends])


class Drafts:
    """All of them, by the blob that they will be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, Draft] = {}

    def begin(self, container: str, name: str, *, size: int, hashed: bool) -> Upload:
        """Room for a block of that size."""
        given = _Room(self, container, name, size)
        return Upload(given.take, hashed=hashed, on_abandon=given.give_back, owner=given)

    def keep(self, container: str, name: str, block: str, upload: Upload) -> None:
        """Remember an upload that is finished as a block."""
        with self.held(container, name) as draft:
            assert isinstance(upload.owner, _Room)  # noqa: S101 - begin() made it
            if upload.owner.draft is not draft:  # its blob was made while it came
                upload.move(*draft.reserve(upload.size))
            draft.keep(block, (upload.start, upload.size))

    @contextmanager
    def held(self, container: str, name: str) -> Iterator[Draft]:
        """The draft; nobody changes it meanwhile."""
        while True:
            draft = self._get(container, name)
            with draft.lock:
                if not draft.ended:
                    yield draft
                    break
        if draft.ended:
            self._forget(draft)

    def drop(self, container: str, name: str) -> bool:
        """Forget the blocks that no list named; whether there were any."""
        if not self._place(container, name).exists():
            return False
        with self.held(container, name) as draft:
            draft.end()
        return True

    def names(self, container: str) -> list[str]:
        """The blobs to be of a container, in order."""
        found = []
        for index in self._folder.glob(f"{PREFIX}*/index"):
            with index.open(encoding="utf-8") as stream:
                name = json.loads(stream.readline())
            if name["container"] == container:
                found.append(name["name"])
        return sorted(found)

    def sweep(self) -> None:
        """Take away what waited too long."""
        for folder in self._folder.glob(f"{PREFIX}*"):
            index = folder / "index"
            touched = (index if index.exists() else folder).stat().st_mtime
            if touched < time.time() - _SECONDS:
                shutil.rmtree(folder)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nobody changes a draft meanwhile."""
        with self._lock, ExitStack() as stack:
            for draft in self._known.values():
                stack.enter_context(draft.lock)
            yield

    def forget(self) -> None:
        """What is known is no longer so: other files are in the folder. For one who keeps them still."""
        for draft in self._known.values():
            draft.ended = True
        self._known.clear()

    def _get(self, container: str, name: str) -> Draft:
        folder = self._place(container, name)
        with self._lock:
            draft = self._known.get(folder.name)
            if draft is None or draft.ended:
                draft = self._known[folder.name] = Draft(folder, container, name)
            return draft

    def _forget(self, draft: Draft) -> None:
        with self._lock:
            if self._known.get(draft.folder.name) is draft:
                del self._known[draft.folder.name]

    def _place(self, container: str, name: str) -> Path:
        key = hashlib.sha256(f"{container}/{name}".encode()).hexdigest()
        return self._folder / f"{PREFIX}{key}"


class _Room:
    """Room in a draft for a block that is coming."""

    def __init__(self, drafts: Drafts, container: str, name: str, size: int) -> None:
        self._drafts = drafts
        self._place = (container, name)
        self._size = size
        self._start = 0
        self.draft: Draft | None = None

    def take(self) -> tuple[int, int]:
        with self._drafts.held(*self._place) as draft:
            self.draft = draft
            handle, self._start = draft.reserve(self._size)
        return handle, self._start

    def give_back(self) -> None:
        if self.draft is not None:
            self.draft.release((self._start, self._size))
