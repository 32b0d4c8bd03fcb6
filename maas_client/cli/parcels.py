"""Files, checkpoints and uploads on the terminal: rich for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from maas_client.cli import render

if TYPE_CHECKING:
    from maas_client.jobs import Checkpoint, StoredFile, Transfer
    from maas_client.targets.base import Target


def files(found: Sequence[StoredFile], *, as_json: bool) -> None:
    if as_json:
        _json([entry.to_json() for entry in found])
        return
    for entry in found:
        render.line(
            f"{entry.id}  {entry.bytes:>13,}  {entry.purpose:17}  {entry.status:9}  {entry.name}"
        )


def file(entry: StoredFile, *, as_json: bool) -> None:
    _json(entry.to_json()) if as_json else files([entry], as_json=False)


def checkpoints(found: Sequence[Checkpoint], *, as_json: bool) -> None:
    if as_json:
        _json([entry.to_json() for entry in found])
        return
    for entry in found:
        losses = [f"{key} {entry.metrics[key]:.4f}" for key in _LOSSES if key in entry.metrics]
        render.line(f"step {entry.step:>6}  {', '.join(losses):32}  {entry.model}")


_LOSSES = ("loss", "eval_loss")


@contextmanager
def uploads(place: Target, *, as_json: bool) -> Iterator[None]:
    """Show what the target uploads meanwhile: a bar on a terminal, lines elsewhere.

    It goes to stderr, in JSON lines for programs: what comes of it is on stdout.
    """
    from maas_client.targets.base import FileTarget

    if not isinstance(place, FileTarget):
        yield
        return
    shown = _Bar() if sys.stderr.isatty() and not as_json else None
    place.on_transfer = shown.show if shown else (_event if as_json else _line)
    try:
        yield
    finally:
        if shown:
            shown.stop()


class _Bar:
    """A bar with the rate and the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}

    def show(self, transfer: Transfer) -> None:
        if not self._tasks:
            self._bar.start()
        if transfer.name not in self._tasks:
            name = f"upload {transfer.name}"
            self._tasks[transfer.name] = self._bar.add_task(name, total=None, numbers="")
        task = self._tasks[transfer.name]
        self._bar.update(
            task, completed=transfer.sent, total=transfer.total, numbers=_numbers(transfer)
        )

    def stop(self) -> None:
        self._bar.stop()


def _numbers(transfer: Transfer) -> str:
    words = [transfer.note] if transfer.note else []
    if transfer.bytes_per_second:
        words.append(f"{transfer.bytes_per_second / 1e6:.1f} MB/s")
    if transfer.seconds_left:
        left = round(transfer.seconds_left)
        words.append(f"{left // 60}:{left % 60:02d} left")
    return "  ".join(words)


def _line(transfer: Transfer) -> None:
    """Beginnings and ends only: a log is no place for the rest."""
    if transfer.note or transfer.sent == transfer.total:
        text = f"upload {transfer.name}: {transfer.sent:,} of {transfer.total:,} bytes"
        print(f"{text}  {_numbers(transfer)}".rstrip(), file=sys.stderr, flush=True)


def _event(transfer: Transfer) -> None:
    print(json.dumps({"upload": transfer.to_json()}), file=sys.stderr, flush=True)


def _json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False), flush=True)
