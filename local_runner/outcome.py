"""What a run was for, written down: the adapter, the whole model where it is asked for or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from local_runner import adapters, checkpoints
from local_runner.models import base as bases
from local_runner.models import tokenizers
from maas_client.plan import Plan
from maas_client.spec.methods import method_of
from maas_client.spec.rundir import RunDir

Tell = Callable[..., None]


def write(run: RunDir, plan: Plan, model: Any, base: bases.Base, *, tell: Tell) -> None:
    """Write each folder whole or not at all; `model` is used up."""
    if method_of(plan.values) == "full":
        _write_whole(run, model, base)
        tell("log", f"the whole model written to {run.merged.name}/")
        return
    _publish(run.adapter, lambda staged: adapters.save(model, staged))
    tell("log", f"adapter written to {run.adapter.name}/")
    if plan.values.get("merge_lora_weights"):
        _write_whole(run, adapters.merge(model, base, run.adapter), base)
        tell("log", f"merged model written to {run.merged.name}/")


def _write_whole(run: RunDir, model: Any, base: bases.Base) -> None:
    def save(staged: Path) -> None:
        adapters.save(model, staged)
        whole = tokenizers.whole(base.folder, model=base.model)
        for name in bases.TOKENIZER_FILES:
            if (source := whole / name).exists():
                (staged / name).write_bytes(source.read_bytes())

    _publish(run.merged, save)


def _publish(folder: Path, save: Callable[[Path], None]) -> None:
    staged = folder.with_name(f"{folder.name}.new")
    checkpoints.clear(staged)
    save(staged)
    checkpoints.publish(staged, folder)
