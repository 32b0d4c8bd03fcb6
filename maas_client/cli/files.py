"""`maas files`: what a target keeps for jobs."""

# mypy: disable-error-code="type-abstract"
# A protocol is asked after here, and never made.
from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from maas_client.cli import parcels, render
from maas_client.cli.jobs import able, open_place
from maas_client.cli.options import Json, TargetName

app = typer.Typer(help="Rows on a target.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_files(
    target: TargetName = "foundry",
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """The newest files."""
    from maas_client.targets.base import FileTarget

    with closing(open_place(target)) as place:
        found = able(place, FileTarget, "keep files").files(limit=limit)
        parcels.files(found, as_json=as_json)


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="Rows, JSONL.")],
    target: TargetName = "foundry",
    as_json: Json = False,
) -> None:
    """Upload rows, as `submit` does by itself. Goes on where an earlier try stopped."""
    from maas_client.targets.base import FileTarget

    with closing(open_place(target)) as place:
        with parcels.uploads(place, as_json=as_json):
            stored = able(place, FileTarget, "keep files").upload_file(file)
        parcels.file(stored, as_json=as_json)


@app.command()
def delete(
    file_id: Annotated[str, typer.Argument(help="The file's id.")],
    target: TargetName = "foundry",
    as_json: Json = False,
) -> None:
    """Delete a file. A job that has taken it keeps its rows."""
    from maas_client.targets.base import FileTarget

    with closing(open_place(target)) as place:
        able(place, FileTarget, "keep files").delete_file(file_id)
        render.done(f"file {file_id} is gone", as_json=as_json)
