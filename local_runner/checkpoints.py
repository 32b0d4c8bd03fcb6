"""What a killed run goes on from: adapter, optimizer, random state and place. No pickle."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from local_runner import adapters
from maas_client.spec.rundir import RunDir, read_json, sync_folder, write_json

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands, besides its tensors."""

    step: int
    best: float
    """The lowest validation loss so far; infinite before there is one."""
    worse: int
    losses: tuple[float, ...]
    """Losses of the steps since the last metric."""
    tokens: int


def save(run: RunDir, state: State, model: PeftModel, optimizer: torch.optim.Optimizer) -> Path:
    """Write a checkpoint; it is there whole, or not at all."""
    folder = run.checkpoint(state.step)
    staged = folder.with_name(f"{folder.name}.new")
    clear(staged)
    staged.mkdir(parents=True)
    save_file(adapters.tensors(model), staged / "adapter.safetensors")
    save_file(_moments(optimizer), staged / "optimizer.safetensors")
    save_file({"cpu": torch.get_rng_state()}, staged / "random.safetensors")
    write_json(staged / "state.json", json.loads(json.dumps(asdict(state))))
    publish(staged, folder)
    return folder


def load(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> State:
    """Put everything back as it was."""
    adapters.restore(model, folder / "adapter.safetensors")
    moments = load_file(folder / "optimizer.safetensors")
    for index, weight in enumerate(_weights(optimizer)):
        optimizer.state[weight] = {
            name: moments[f"{index}.{name}"].clone() for name in ("step", "exp_avg", "exp_avg_sq")
        }
    torch.set_rng_state(load_file(folder / "random.safetensors")["cpu"])
    raw = read_json(folder / "state.json")
    return State(**(raw | {"losses": tuple(raw["losses"])}))


def prune(run: RunDir, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; -1 keeps all, and one is always kept."""
    if keep < 0:
        return
    for step in run.checkpoint_steps()[: -max(keep, 1)]:
        clear(run.checkpoint(step))


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, folder: Path) -> None:
    """Give a written folder its name, once all of it is on the disk."""
    for file in staged.iterdir():
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
    clear(folder)
    staged.replace(folder)
    sync_folder(folder.parent)


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value.contiguous()
        for index, weight in enumerate(_weights(optimizer))
        for name, value in optimizer.state[weight].items()
    }
