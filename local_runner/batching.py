"""Continuous batching: in each step every running row gets one token, and newcomers are read beside them.

Rows lie in the memory's slots in this order: those that speak, and at most one that is still being read.
Whoever leaves is replaced by the last one, so that joining copies nothing and leaving at most two rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from local_runner.lean import Chunk, Lean
from local_runner.low_rank import Lora, Stack

if TYPE_CHECKING:
    from torch import Tensor

MOST_ROWS = 32
MOST_BYTES = 2 * 1024**3
"""What the rows may remember together, were all to reach their limit; who finds no room waits."""
_READ_ALONE, _READ_BESIDE = 512, 128
"""Prompt tokens read in one step: while nobody speaks, and while somebody does and waits for it."""


@dataclass(eq=False, slots=True)
class Row:
    """A text that is to go on."""

    ids: list[int]
    """The prompt, and behind it what was made."""
    limit: int
    """How long it may become."""
    choose: Callable[[Tensor], int] | None = None
    """The next token of its logits, [vocabulary]; None takes the likeliest."""
    lora: Lora | None = None
    known: int = 0
    """How many of the ids are in the memory."""


@dataclass(eq=False)
class Batch:
    """The rows of one base.

    Args:
        lean: the base's forward pass.
        most_rows: how many run at once.
        most_bytes: what they may remember.
    """

    lean: Lean
    most_rows: int = MOST_ROWS
    most_bytes: int = MOST_BYTES
    waiting: deque[Row] = field(default_factory=deque)
    rows: list[Row] = field(default_factory=list)
    """By slot."""
    _speaking: int = 0
    """How many of them speak; they come first."""

    def __post_init__(self) -> None:
        self._stack = Stack(self.lean.memory.cells.dtype)

    def join(self, row: Row) -> None:
        """Take the row in as soon as there is room."""
        self.waiting.append(row)

    def leave(self, row: Row) -> None:
        """Drop the row; its slot is free at once."""
        if row in self.waiting:
            self.waiting.remove(row)
        elif row in self.rows:
            self._vacate(self.rows.index(row))
        if not self.rows:
            self.lean.memory.forget()

    def step(self) -> list[tuple[Row, int]]:
        """One forward pass: the next token of each row that has been read to its end."""
        chunks = self._chunks()
        speaking = self.rows[: self._speaking]
        if not speaking and not chunks:
            return []
        readers = [self.rows[chunk.slot] for chunk in chunks]
        loras = [row.lora for row in speaking]
        for chunk, row in zip(chunks, readers, strict=True):
            loras += [row.lora] * len(chunk.ids)
        with torch.inference_mode():
            logits = self.lean.forward(
                [row.ids[-1] for row in speaking],
                [row.known for row in speaking],
                chunks,
                self._stack.over(loras),
                limit=max(row.limit for row in self.rows),
            )
            for row in speaking:
                row.known += 1
            for chunk, row in zip(chunks, readers, strict=True):
                row.known += len(chunk.ids)
            # Only the last can be one that is not at the end of its prompt.
            done = [row for row in (*speaking, *readers) if row.known == len(row.ids)]
            self._speaking = len(done)
            return _continue(done, logits)

    def _chunks(self) -> list[Chunk]:
        """What is read in this step: the one that was begun, and newcomers while there is room."""
        left = _READ_BESIDE if self._speaking else _READ_ALONE
        found = []
        slot = self._speaking
        while left > 0:
            if slot == len(self.rows):
                if not self.waiting or not self._has_room(self.waiting[0]):
                    break
                self.rows.append(self.waiting.popleft())
            row = self.rows[slot]
            found.append(Chunk(slot, row.ids[row.known : row.known + left], row.known))
            left -= len(found[-1].ids)
            slot += 1
        return found

    def _has_room(self, row: Row) -> bool:
        if not self.rows:
            return True  # alone it may be as long as it likes
        count = len(self.rows) + 1
        longest = max(row.limit, *(other.limit for other in self.rows))
        needed = count * longest * self.lean.memory.cell_bytes
        return count <= self.most_rows and needed <= self.most_bytes

    def _vacate(self, slot: int) -> None:
        if slot < self._speaking:
            self._speaking -= 1
            self._move(self._speaking, slot)
            slot = self._speaking
        self._move(len(self.rows) - 1, slot)
        self.rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            row = self.rows[target] = self.rows[source]
            if row.known:  # else nothing of it is there yet, perhaps not even its room
                with torch.inference_mode():
                    self.lean.memory.move(source, target, row.known)


def _continue(rows: Sequence[Row], logits: Tensor) -> list[tuple[Row, int]]:
    """Choose each row's next token. logits: [rows or one more, vocabulary]."""
    likeliest = logits.argmax(-1).tolist()
    made = []
    for place, row in enumerate(rows):
        token = likeliest[place] if row.choose is None else row.choose(logits[place].float())
        row.ids.append(token)
        made.append((row, token))
    return made
