"""Where a download lies until it is whole: beside its place, which it takes in one step."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from maas_client.errors import RunDirError, TargetError
from maas_client.spec.rundir import RunDir, read_json, sync_folder


@contextmanager
def staged(dest: Path, origin: Mapping[str, str]) -> Iterator[tuple[Path, RunDir]]:
    """A parcel folder to download into and a run directory to fill, which becomes `dest` at the end.

    Both lie beside `dest`, so that the last step is one rename: what is there under that name is
    whole, or not there.

    Raises:
        TargetError: `dest` holds something that is not an earlier download of the same job.
    """
    dest = dest.absolute()
    _refuse_foreign(dest, origin)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as folder:
        parcel, run, old = (Path(folder) / name for name in ("parcel", "run", "old"))
        parcel.mkdir()
        run.mkdir()
        yield parcel, RunDir(run)
        _refuse_foreign(dest, origin)  # it took a while
        if dest.exists():
            dest.replace(old)
        run.replace(dest)
        sync_folder(dest.parent)


def _refuse_foreign(dest: Path, origin: Mapping[str, str]) -> None:
    if not dest.exists():
        return
    if not dest.is_dir():
        raise TargetError(f"{dest} is a file", hint="Name a new directory.")
    if not any(dest.iterdir()):
        return
    try:
        same = read_json(RunDir(dest).origin_file) == dict(origin)
    except RunDirError:
        same = False
    if not same:
        raise TargetError(
            f"{dest} is not empty, and not an earlier download of job {origin['job']}",
            hint="Name a new directory.",
        )
