"""Content as it arrives: gathered, written in threads, never held whole."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence

_BATCH = 1024 * 1024
"""Bytes that are worth a hop to a thread."""
_PIECES = 256
"""Pieces in one write; the system takes up to 1,024."""


class Upload:
    """Bytes on their way into a file, from a place in it on; constant memory.

    Args:
        room: opens the file, in a thread, and says where in it there is room.
        hashed: whether the MD5 is wanted.
        on_abandon: takes away what an upload that breaks off has left.
        owner: who gives the room.
    """

    def __init__(
        self,
        room: Callable[[], tuple[int, int]],
        *,
        hashed: bool,
        on_abandon: Callable[[], None],
        owner: object,
    ) -> None:
        self._room = room
        self._handle = -1
        self._digest = hashlib.md5(usedforsecurity=False) if hashed else None  # the protocol's own
        self._on_abandon = on_abandon
        self._held: list[bytes] = []
        # A thread may still be writing when the reader of the request gives up, and the number of a
        # closed handle is soon another file's.
        self._lock = threading.Lock()
        self._over = False
        self.owner = owner
        self.start = self.size = 0

    def hold(self, parts: list[bytes]) -> None:
        """Keep the last parts in mind; who finishes the upload writes them."""
        self._held = parts

    def write(self, parts: Sequence[bytes]) -> None:
        """Append them."""
        with self._lock:
            if self._over:
                return
            if self._handle < 0:  # not before: making a file can take longer than all the rest
                self._handle, self.start = self._room()
            for first in range(0, len(parts), _PIECES):
                self._write(parts[first : first + _PIECES])

    def finish(self) -> str:
        """Write the last parts; MD5 in base64, empty if nobody asked for it."""
        self.write(self._held)
        self._held = []
        return base64.b64encode(self._digest.digest()).decode() if self._digest else ""

    def move(self, handle: int, start: int) -> None:
        """Go on in another file."""
        with self._lock:
            copy_range(self._handle, self.start, self.size, handle, start)
            os.close(self._handle)
            self._handle, self.start = handle, start

    def sync(self) -> None:
        """From here on the content is on the disk."""
        with self._lock:
            os.fsync(self._handle)

    def close(self) -> None:
        with self._lock:
            self._close()

    def abandon(self) -> None:
        """Forget what came; harmless once the upload was kept."""
        self.close()
        self._on_abandon()

    def _close(self) -> None:
        if self._handle >= 0 and not self._over:
            os.close(self._handle)
        self._over = True

    def _write(self, parts: Sequence[bytes]) -> None:
        total = sum(len(part) for part in parts)
        done = os.pwritev(self._handle, parts, self.start + self.size)
        if done < total:  # the disk is nearly full, or a signal came
            rest = memoryview(b"".join(parts))
            while done < total:
                done += os.pwrite(self._handle, rest[done:], self.start + self.size + done)
        self.size += total
        if self._digest is not None:
            for part in parts:
                self._digest.update(part)


def copy_range(source: int, start: int, size: int, target: int, place: int) -> None:
    """Copy between two open files; where the system can, without the bytes passing through here."""
    done = 0
    while done < size:
        try:
            moved = os.copy_file_range(source, target, size - done, start + done, place + done)
        except (AttributeError, OSError):  # not on this system, or not on these files
            moved = os.pwrite(
                target, os.pread(source, min(_BATCH, size - done), start + done), place + done
            )
        if not moved:
            raise OSError(errno.EIO, "content is missing")
        done += moved


async def receive(parts: AsyncIterator[bytes], upload: Upload, *, keep: int = 0) -> Sequence[bytes]:
    """Take the parts in. One batch is written while the next one comes.

    Returns:
        The parts, where they are no more than `keep` bytes.
    """
    loop = asyncio.get_running_loop()
    writing: asyncio.Future[None] | None = None
    batch: list[bytes] = []
    size = total = 0
    async for part in parts:
        batch.append(part)
        size += len(part)
        if size >= _BATCH:
            if writing is not None:
                await writing
            writing = loop.run_in_executor(None, upload.write, batch)
            total += size
            batch, size = [], 0
    if writing is not None:
        await writing
    upload.hold(batch)
    return batch if total + size <= keep else ()
