"""The options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _target_names() -> list[str]:
    """For the shell, which completes them."""
    from maas_client.errors import SettingsError
    from maas_client.settings import load_targets

    try:
        return list(load_targets())
    except SettingsError:
        return []  # not the moment to complain


TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        help="Where: local, mock, azure, or a name of maas.toml.",
        autocompletion=_target_names,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Weights to start from, or whose tokenizer counts: a folder, a hub id, stand-in, tiny or "
        "tiny-phi-3-small. Without it, the model's own from the Hugging Face cache.",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Local only: what the run may take, such as 6GB; it works in smaller parts to fit.",
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="The job's name, instead of the file's.")]
New = Annotated[
    bool, typer.Option("--new", help="Make another job, though the same was submitted before.")
]
DryRun = Annotated[
    Literal["client", "server"] | None,
    typer.Option(
        "--dry-run",
        help="Kaito only: print the manifests and apply nothing; `server` asks the cluster, too.",
    ),
]
JobFile = Annotated[Path, typer.Argument(help="Azure ML's fine-tuning YAML.")]
Simulate = Annotated[
    bool,
    typer.Option("--simulate", help="Local only: the same files in a second, nothing trained."),
]
ValidationSplit = Annotated[
    float | None,
    typer.Option(
        "--validation-split",
        help="Validate with this share of the training rows; no question is in both parts.",
        min=0,
        max=1,
    ),
]
MLflow = Annotated[
    str | None,
    typer.Option("--mlflow", help="Log the run to this MLflow: http://…, or sqlite:///file.db."),
]
TensorBoard = Annotated[
    Path | None,
    typer.Option("--tensorboard", help="Write TensorBoard files under this folder."),
]
