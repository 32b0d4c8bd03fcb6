"""One content of many blocks: named where they lie in one file, copied only where they do not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from local_runner.mock_server.storage.pieces import merge
from local_runner.mock_server.storage.upload import copy_range

_MOST_PIECES = 1024
"""A content in more pieces than this is worth a copy."""

Wanted = tuple[Literal["Committed", "Uncommitted", "Latest"], str]
"""Where to look for a block, and its id."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a blob, or of one to be."""

    id: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Source:
    """A file and the blocks in it."""

    file: Path
    blocks: Mapping[str, Block]


Found = tuple[Path, Block]
"""A block and the file that it lies in."""


def find(wanted: Sequence[Wanted], waiting: Source, committed: Source) -> list[Found]:
    """The blocks of a list.

    Raises:
        KeyError: one is not there.
    """
    found = []
    for where, key in wanted:
        first = committed if where == "Committed" else waiting
        source = committed if where == "Latest" and key not in first.blocks else first
        found.append((source.file, source.blocks[key]))
    return found


def join(found: Sequence[Found], target: Path) -> tuple[list[Block], list[list[int]]]:
    """Make the target hold the blocks: where each lies in it, and which pieces of it are the content.

    No pieces: all of it.
    """
    blocks = [block for _, block in found]
    pieces = merge([(block.start, block.size) for block in blocks])
    files = {file for file, _ in found}
    if len(files) == 1 and not _is_wasteful(found[0][0], pieces):
        target.hardlink_to(found[0][0])
        with target.open("rb") as stream:
            os.fsync(stream.fileno())
        return blocks, pieces
    return _copy(found, target), []


def _copy(found: Sequence[Found], target: Path) -> list[Block]:
    copied, place = [], 0
    with target.open("wb") as stream:
        for file, block in found:
            with file.open("rb") as source:
                copy_range(source.fileno(), block.start, block.size, stream.fileno(), place)
            copied.append(Block(block.id, place, block.size))
            place += block.size
        os.fsync(stream.fileno())
    return copied


def _is_wasteful(file: Path, pieces: Sequence[Sequence[int]]) -> bool:
    """Whether the file is mostly something else, or would be read in too many steps."""
    size = sum(size for _, size in pieces)
    return len(pieces) > _MOST_PIECES or file.stat().st_size > 2 * size
