"""The twin's state under a name, to go back to: documents copied, contents linked, for they never change.

Going back is one transaction: the store says that it happened, and what a killed server has not put in
its place by then, the next one does. So the state is the one before or the one after, never a mixture.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from local_runner.clock import Pace
from local_runner.mock_server.storage.blobs import KIND as BLOB
from local_runner.mock_server.storage.drafts import PREFIX as DRAFT
from local_runner.mock_server.store import Store
from maas_client.spec.rundir import read_json, write_json

_LINKED = ("blobs", "runs")
"""Folders beside the store. Nobody writes to a file in them again but to drafts: a change is another file."""
_PACE = "clock.json"
_BEGUN = ("snapshot", "begun")
"""The document that is there while folders are put in their place."""


def names(home: Path) -> list[str]:
    """The snapshots there are."""
    folder = home / "snapshots"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if not path.name.startswith("."))


def take(store: Store, home: Path, name: str, pace: Pace | None = None) -> None:
    """Keep the state; a snapshot of that name is replaced. Nobody may change anything meanwhile."""
    target, new = home / "snapshots" / name, home / "snapshots" / f".{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    store.copy_to(new / "store.sqlite")
    if pace is not None:
        write_json(new / _PACE, asdict(pace))
    for folder in _LINKED:
        (new / folder).mkdir()
    for doc in store.list(BLOB):
        _link_file(home / "blobs" / doc.body["file"], new / "blobs" / doc.body["file"])
    for draft in (home / "blobs").glob(f"{DRAFT}*"):
        # Blocks that wait for their list are written to.
        _copy(draft, new / "blobs" / draft.name, shutil.copy2)
    _copy(home / "runs", new / "runs", _link_file)
    old = _old(target)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def pace(home: Path, name: str) -> Pace | None:
    """How time went when it was taken; None: as it really does."""
    file = home / "snapshots" / name / _PACE
    return Pace(**read_json(file)) if file.exists() else None


def restore(store: Store, home: Path, name: str) -> None:
    """Go back to the state. Nobody may change anything meanwhile."""
    source = home / "snapshots" / name
    for folder in _LINKED:
        # Put beside first: a full disk leaves what is there.
        _copy(source / folder, _new(home, folder), _link_or_copy)
    _replace(store, home, lambda: store.copy_from(source / "store.sqlite"))


def forget_all(store: Store, home: Path) -> None:
    """Have nothing, but for the snapshots. Nobody may change anything meanwhile."""
    for folder in _LINKED:
        _new(home, folder).mkdir()
    _replace(store, home, store.clear)


def drop(home: Path, name: str) -> bool:
    """Forget a snapshot; whether it was there."""
    target = home / "snapshots" / name
    if not target.is_dir():
        return False
    shutil.rmtree(target)
    return True


def recover(store: Store, home: Path) -> None:
    """Bring to an end what a killed server had begun, or take away what it had not."""
    if store.get(*_BEGUN) is not None:
        _put_in_place(store, home)
    for folder in _LINKED:
        for leftover in (home / f".{folder}.new", home / f".{folder}.old"):
            shutil.rmtree(leftover, ignore_errors=True)
    for leftover in (home / "snapshots").glob(".*"):
        kept = leftover.with_name(leftover.stem[1:])
        if leftover.suffix == ".old" and not kept.exists():
            leftover.rename(kept)
        else:
            shutil.rmtree(leftover)


def _replace(store: Store, home: Path, change: Callable[[], None]) -> None:
    with store.transaction():
        change()
        store.put(*_BEGUN, {})
    _put_in_place(store, home)


def _put_in_place(store: Store, home: Path) -> None:
    gone = []
    for folder in _LINKED:
        place, new = home / folder, home / f".{folder}.new"
        if new.exists():  # else a killed server has done it
            old = _old(place)
            if place.exists():
                place.rename(old)
            new.rename(place)
            gone.append(old)
    store.delete(*_BEGUN)
    for old in gone:
        shutil.rmtree(old, ignore_errors=True)


def _new(home: Path, folder: str) -> Path:
    """Where a folder is made that is to take the place of another; nothing is there."""
    path = home / f".{folder}.new"
    shutil.rmtree(path, ignore_errors=True)
    return path


def _old(path: Path) -> Path:
    """Where a folder makes way to; nothing is there."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    return old


def _copy(source: Path, target: Path, copy: Callable[[Path, Path], object]) -> None:
    """The files of a folder; those that go meanwhile, as a refused job's do, are left out."""
    target.mkdir(exist_ok=True)
    for folder, _, files in os.walk(source):
        there = target / Path(folder).relative_to(source)
        there.mkdir(exist_ok=True)
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                copy(Path(folder) / file, there / file)


def _link_or_copy(source: Path, target: Path) -> None:
    (shutil.copy2 if source.parent.name.startswith(DRAFT) else _link_file)(source, target)


def _link_file(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # a file system that has no links
        shutil.copy2(source, target)
