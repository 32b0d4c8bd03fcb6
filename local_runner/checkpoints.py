"""What a killed run goes on from: adapter, optimizer, random state and place. No pickle."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from local_runner import adapters, optimizers
from maas_client.errors import RunDirError
from maas_client.spec.rundir import EPOCH_FILE, RunDir, read_json, sync_folder, write_json


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands, besides its tensors."""

    step: int
    best: float | None
    """The best evaluation so far."""
    worse: int
    """Evaluations in a row without a gain."""
    losses: tuple[float, ...]
    """Losses of the steps since the last metric."""
    tokens: int
    """Tokens seen since the last metric."""
    asked_for: bool
    """Whether the job asked for it; else it is there in case of a crash, and goes at the end."""
    best_step: int | None = None
    """When the best evaluation was."""
    halvings: int = 0
    """How often a forward pass has been halved for want of memory."""


def save(run: RunDir, state: State, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint; it is there whole, or not at all."""
    folder = run.checkpoint(state.step)
    if folder.exists():
        return
    staged = folder.with_name(f"{folder.name}.new")
    clear(staged)
    staged.mkdir(parents=True)
    save_file(adapters.tensors(model), staged / "adapter.safetensors")
    moments, numbers = optimizers.state_of(optimizer)
    save_file(moments, staged / "optimizer.safetensors")
    save_file({"cpu": torch.get_rng_state()}, staged / "random.safetensors")
    write_json(staged / "state.json", asdict(state) | {"optimizer": numbers})
    publish(staged, folder)
    for step in run.best_steps():
        if step != state.best_step:
            _remove(run.best(step))  # only now: a killed run goes on from the checkpoint before


def save_best(run: RunDir, step: int, model: Any) -> None:
    """Write what is trained as it is at the best evaluation so far."""
    folder = run.best(step)
    staged = folder.with_name(f"{folder.name}.new")
    clear(staged)
    staged.mkdir(parents=True)
    save_file(adapters.tensors(model), staged / "adapter.safetensors")
    publish(staged, folder)


def load_best(run: RunDir, step: int, model: Any) -> None:
    """Put back what the best evaluation saw.

    Raises:
        RunDirError: it is not there any more.
    """
    file = run.best(step) / "adapter.safetensors"
    if not file.exists():
        raise RunDirError(f"{file} is gone: it held the best model", hint="Run the job anew.")
    adapters.restore(model, file)


def save_epoch(run: RunDir, epoch: int, step: int, model: Any, *, keep: int) -> None:
    """Write the adapter as it is after an epoch, to be asked; the newest `keep` stay."""
    folder = run.epoch(epoch)
    staged = folder.with_name(f"{folder.name}.new")
    clear(staged)
    adapters.save(model, staged)
    write_json(staged / EPOCH_FILE, {"epoch": epoch, "step": step, "at": time.time()})
    publish(staged, folder)
    for old in run.epochs()[:-keep]:
        _remove(run.epoch(old))


def load(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> State:
    """Put everything back as it was.

    Raises:
        RunDirError: there is no checkpoint.
        BaseModelError: it is of another method or model.
    """
    state = _state(folder)
    adapters.restore(model, folder / "adapter.safetensors")
    numbers = read_json(folder / "state.json").get("optimizer", {})
    optimizers.put_back(optimizer, load_file(folder / "optimizer.safetensors"), numbers)
    torch.set_rng_state(load_file(folder / "random.safetensors")["cpu"])
    return state


def find(place: Path) -> Path:
    """A checkpoint by its own folder, or by the run directory whose newest it is.

    Raises:
        RunDirError: there is none.
    """
    steps = RunDir(place).checkpoint_steps()
    found = RunDir(place).checkpoint(steps[-1]) if steps else place
    if not (found / "state.json").exists():
        raise RunDirError(
            f"resume_from_checkpoint: {place} is no checkpoint, and no run directory that has one",
            hint="Name a folder such as runs/NAME/checkpoints/step-000100; save_strategy keeps them.",
        )
    return found


def begin_from(place: Path, model: Any, optimizer: torch.optim.Optimizer) -> State:
    """Go on from another run's checkpoint: weights, optimizer, random state and step."""
    state = load(find(place), model, optimizer)
    # What that run had measured is judged by its own rows.
    return replace(state, best=None, best_step=None, worse=0, losses=(), tokens=0)


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
    for step in run.best_steps():
        _remove(run.best(step))


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
    known = {key: raw[key] for key in State.__slots__ if key in raw}
    return State(**(known | {"losses": tuple(raw["losses"])}))
