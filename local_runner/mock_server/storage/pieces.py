"""A content that lies in pieces in a file, read as if it were one."""

from __future__ import annotations

import bisect
import io
import itertools
import os
from collections.abc import Sequence
from io import BufferedReader
from typing import Any


class Pieces(io.RawIOBase):
    """The pieces in their order. Closes the file with itself."""

    def __init__(self, file: BufferedReader, pieces: Sequence[Sequence[int]]) -> None:
        self._file = file
        self._pieces = pieces
        self._firsts = list(itertools.accumulate((size for _, size in pieces), initial=0))
        """Where in the content each piece begins; last, where the content ends."""
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._firsts[-1]}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._firsts[-1]:
            return 0
        number = bisect.bisect_right(self._firsts, self._at) - 1
        start, size = self._pieces[number]
        skipped = self._at - self._firsts[number]
        part = memoryview(buffer)[: size - skipped]
        done = os.preadv(self._file.fileno(), [part], start + skipped)
        self._at += done
        return done

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def merge(places: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The same places with neighbours made one."""
    merged: list[list[int]] = []
    for start, size in places:
        if merged and sum(merged[-1]) == start:
            merged[-1][1] += size
        else:
            merged.append([start, size])
    return merged
