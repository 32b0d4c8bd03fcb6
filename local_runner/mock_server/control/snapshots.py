"""The twin's state under a name, to go back to: documents copied, contents linked, for they never change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from local_runner.mock_server.storage.drafts import PREFIX as DRAFT
from local_runner.mock_server.store import Store

_LINKED = ("blobs", "runs")
"""Folders beside the store. Nobody writes to a file in them again but to drafts: a change is another file."""


def names(home: Path) -> list[str]:
    """The snapshots there are."""
    folder = home / "snapshots"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if not path.name.startswith("."))


def take(store: Store, home: Path, name: str) -> None:
    """Keep the state; a snapshot of that name is replaced."""
    target, new = home / "snapshots" / name, home / "snapshots" / f".{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with store.transaction():  # nobody changes anything meanwhile
        store.copy_to(new / "store.sqlite")
        for folder in _LINKED:
            _link(home / folder, new / folder)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def restore(store: Store, home: Path, name: str) -> None:
    """Go back to the state."""
    source = home / "snapshots" / name
    with store.transaction():
        for folder in _LINKED:
            # Put beside first: a full disk leaves what is there.
            new = home / f".{folder}.new"
            shutil.rmtree(new, ignore_errors=True)
            _link(source / folder, new)
        store.copy_from(source / "store.sqlite")
        for folder in _LINKED:
            shutil.rmtree(home / folder, ignore_errors=True)
            (home / f".{folder}.new").rename(home / folder)


def drop(home: Path, name: str) -> bool:
    """Forget a snapshot; whether it was there."""
    target = home / "snapshots" / name
    if not target.is_dir():
        return False
    shutil.rmtree(target)
    return True


def _link(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        target.mkdir(parents=True)


def _link_file(source: str, target: str) -> None:
    if f"{os.sep}{DRAFT}" in source:  # blocks that wait for their list are written to
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError:  # a file system that has no links
        shutil.copy2(source, target)
