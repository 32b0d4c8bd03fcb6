"""`maas verify`: the digests of a run, or its bytes made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maas_client.cli import render
from maas_client.cli.options import Json


def verify(
    run_dir: Annotated[Path, typer.Argument(help="A local run that has ended well.")],
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Train the same plan again, and compare the bytes.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Check a run's files against its manifest; with --rerun, make them again. Exit code 0 or 1."""
    from maas_client.verifying import verify as held

    verdict = held(run_dir, rerun=rerun)
    if as_json:
        render.data(verdict.to_json())
        return 0 if verdict.ok else 1
    for file in verdict.files:
        if file.state != "same":
            render.line(f"{file.state:8} {file.name}")
    for note in (verdict.first_difference, *verdict.notes):
        if note:
            render.line(note)
    if verdict.kept:
        render.line(f"the other run is kept in {verdict.kept}")
    same = sum(file.state == "same" for file in verdict.files)
    what = "made again, byte for byte" if verdict.rerun else "as the manifest says"
    render.line(f"{same} of {len(verdict.files)} files {what}")
    return 0 if verdict.ok else 1
