"""What a killed run goes on from: adapter, optimizer, random state and place. No pickle."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from local_runner import adapters
from maas_client.spec.rundir import EPOCH_FILE, RunDir, read_json, sync_folder, write_json

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands, besides its tensors."""

    step: int
    best: float | None
    """The lowest validation loss so far."""
    worse: int
    """Evaluations in a row without a gain."""
    losses: tuple[float, ...]
    """Losses of the steps since the last metric."""
    tokens: int
    """Tokens seen since the last metric."""
    asked_for: bool
    """Whether the job asked for it; else it is there in case of a crash, and goes at the end."""


def save(run: RunDir, state: State, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint; it is there whole, or not at all."""
    folder = run.checkpoint(state.step)
    if folder.exists():
        return
    staged = folder.with_name(f"{folder.name}.new")
    clear(staged)
    staged.mkdir(parents=True)
    save_file(adapters.tensors(model), staged / "adapter.safetensors")
    save_file(_moments(optimizer), staged / "optimizer.safetensors")
    save_file({"cpu": torch.get_rng_state()}, staged / "random.safetensors")
    write_json(staged / "state.json", asdict(state))
    publish(staged, folder)


def save_epoch(run: RunDir, epoch: int, step: int, model: PeftModel, *, keep: int) -> None:
    """Write the adapter as it is after an epoch, to be asked; the newest `keep` stay."""
    folder = run.epoch(epoch)
    staged = folder.with_name(f"{folder.name}.new")
    clear(staged)
    adapters.save(model, staged)
    write_json(staged / EPOCH_FILE, {"epoch": epoch, "step": step, "at": time.time()})
    publish(staged, folder)
    for old in run.epochs()[:-keep]:
        _remove(run.epoch(old))


def load(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> State:
    """Put everything back as it was."""
    adapters.restore(model, folder / "adapter.safetensors")
    moments = load_file(folder / "optimizer.safetensors")
    for index, weight in enumerate(_weights(optimizer)):
        optimizer.state[weight] = {
            name: moments[f"{index}.{name}"].clone() for name in ("step", "exp_avg", "exp_avg_sq")
        }
    torch.set_rng_state(load_file(folder / "random.safetensors")["cpu"])
    return _state(folder)


def prune(run: RunDir, *, keep: int) -> None:
    """Remove all but the newest `keep` that the job asked for; -1 keeps all of them.

    The newest checkpoint always stays: a killed run goes on from it.
    """
    steps = run.checkpoint_steps()
    asked = [step for step in steps if _state(run.checkpoint(step)).asked_for]
    kept = asked if keep < 0 else asked[len(asked) - keep :]
    for step in steps[:-1]:
        if step not in kept:
            _remove(run.checkpoint(step))


def finish(run: RunDir) -> None:
    """Remove what was only there in case of a crash."""
    for step in run.checkpoint_steps():
        if not _state(run.checkpoint(step)).asked_for:
            _remove(run.checkpoint(step))


def sweep(run: RunDir) -> None:
    """Remove the halves that a killed process left."""
    for folder in (*run.path.glob("*.new"), *run.checkpoints.glob("*.new")):
        if folder.is_dir():
            clear(folder)


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, folder: Path) -> None:
    """Give a written folder its name, once all of it is on the disk."""
    for file in staged.iterdir():
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
    sync_folder(staged)
    clear(folder)
    staged.replace(folder)
    sync_folder(folder.parent)


def _remove(folder: Path) -> None:
    """Take the name away first: what is half removed is no checkpoint."""
    half = folder.with_name(f"{folder.name}.new")
    folder.replace(half)
    clear(half)


def _state(folder: Path) -> State:
    raw = read_json(folder / "state.json")
    return State(**(raw | {"losses": tuple(raw["losses"])}))


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value.contiguous()
        for index, weight in enumerate(_weights(optimizer))
        for name, value in optimizer.state[weight].items()
    }
