"""A run that is interrupted, cancelled or killed says so, and ends with the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from local_runner import checkpoints
from local_runner import train as recipe
from local_runner.train import train
from maas_client.errors import RunDirError, RunnerError
from maas_client.jobs import JobStatus
from maas_client.spec.rundir import RunDir, read_json

MakeRun = Callable[..., RunDir]
Bytes = Callable[[RunDir], tuple[bytes, bytes]]
Runner = Callable[..., subprocess.Popen[str]]

LONG = {
    "max_steps": 240,
    "lora_dropout": 0.05,  # the random state has to come back too
    "evaluation_strategy": "steps",
    "eval_steps": 50,
    "save_strategy": "steps",
    "save_steps": 20,
    "logging_steps": 3,
}
HELD_OUT = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}]


def status_of(run: RunDir) -> tuple[JobStatus, str | None]:
    status = run.read_status()
    assert status is not None
    return status.status, status.error


def comparable(run: RunDir) -> list[dict[str, object]]:
    """The metrics without what the clock says."""
    clock = ("at", "tokens_per_second", "seconds_left")
    return [{k: v for k, v in metric.items() if k not in clock} for metric in run.metrics()]


def wait_for_step(child: subprocess.Popen[str], step: int) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["data"].get("step", 0) >= step:
            return
    raise AssertionError(child.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    make_run: MakeRun, start: Runner, adapter_bytes: Bytes, number: signal.Signals
) -> None:
    run = make_run(held_out=HELD_OUT, **LONG)
    child = start("train", run.path)
    wait_for_step(child, 60)
    child.send_signal(number)
    child.communicate(timeout=60)
    if number is signal.SIGKILL:
        assert child.returncode == -signal.SIGKILL
        assert status_of(run)[0] is JobStatus.RUNNING
    else:
        assert child.returncode == 130
        state, error = status_of(run)
        assert state is JobStatus.CANCELLED
        assert "interrupted at step" in str(error)
        assert "run it again" in str(error)
    assert not run.is_locked()
    assert not run.adapter.exists()
    assert run.checkpoint_steps()[-1] >= 40
    assert train(run).status is JobStatus.SUCCEEDED
    assert read_json(run.manifest_file)["resumed_at_step"] >= 40
    whole = make_run("whole", held_out=HELD_OUT, **LONG)
    train(whole)
    assert adapter_bytes(run) == adapter_bytes(whole)
    assert comparable(run) == comparable(whole)
    assert [event.seq for event in run.events()] == [n + 1 for n, _ in enumerate(run.events())]


def test_a_killed_run_loses_little_though_it_asked_for_no_checkpoint(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, adapter_bytes: Bytes
) -> None:
    monkeypatch.setattr(recipe, "_CRASH_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(recipe, "_CRASH_CHECKPOINT_SHARE", 0.0)
    run = make_run(save_strategy="disable", max_steps=12)

    def die(event: object) -> None:
        if getattr(event, "data", {}).get("step") == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, on_event=die)
    assert run.checkpoint_steps() == [8]
    train(run)
    assert read_json(run.manifest_file)["resumed_at_step"] == 8
    assert run.checkpoint_steps() == []
    whole = make_run("whole", save_strategy="disable", max_steps=12)
    train(whole)
    assert adapter_bytes(run) == adapter_bytes(whole)
    assert comparable(run) == comparable(whole)


def test_a_cancelled_run_stops_at_the_next_step(make_run: MakeRun) -> None:
    run = make_run(max_steps=10_000)

    def cancel(event: object) -> None:
        if getattr(event, "data", {}).get("step") == 3:
            run.cancel_file.touch()

    assert train(run, on_event=cancel).status is JobStatus.CANCELLED
    assert status_of(run) == (JobStatus.CANCELLED, "cancelled at step 3 of 10000")
    assert not run.adapter.exists()


def test_two_processes_never_train_the_same_run(make_run: MakeRun, start: Runner) -> None:
    run = make_run(max_steps=100_000)
    child = start("train", run.path)
    wait_for_step(child, 1)
    with pytest.raises(RunDirError, match=f"process {child.pid}"):
        train(run)
    other = start("train", run.path)
    output, errors = other.communicate(timeout=60)
    assert other.returncode == 1
    assert json.loads(output.splitlines()[-1])["error"]["type"] == "RunDirError"
    assert str(child.pid) in errors
    assert status_of(run)[0] is JobStatus.RUNNING
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == 130


def test_half_a_checkpoint_is_no_checkpoint(make_run: MakeRun) -> None:
    run = make_run()
    half = run.checkpoints / "step-000003.new"
    half.mkdir(parents=True)
    (half / "adapter.safetensors").write_bytes(b"half")
    assert train(run).status is JobStatus.SUCCEEDED
    assert not half.exists()


def test_a_full_disk_is_an_honest_failure_that_can_be_resumed(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, adapter_bytes: Bytes
) -> None:
    run = make_run(save_strategy="steps", save_steps=4)
    save = checkpoints.save_file

    def full(tensors: object, file: Path, **options: object) -> None:
        if "step-000008" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, file, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(RunnerError, match="the disk is full") as raised:
            train(run)
    assert "resumes" in raised.value.hint
    state, error = status_of(run)
    assert state is JobStatus.FAILED
    assert "disk is full" in str(error)
    assert run.checkpoint_steps() == [4]
    train(run)
    whole = make_run("whole", save_strategy="steps", save_steps=4)
    train(whole)
    assert adapter_bytes(run) == adapter_bytes(whole)


def test_a_status_that_cannot_be_written_does_not_hide_why(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()

    def full(event: object) -> None:
        if getattr(event, "kind", "") != "log":
            monkeypatch.setattr(RunDir, "write_status", refuse)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunnerError, match="the disk is full"):
        train(run, on_event=full)


def test_early_stopping_is_not_forgotten_by_a_resumed_run(
    make_run: MakeRun, start: Runner, adapter_bytes: Bytes
) -> None:
    stopping = LONG | {
        "apply_early_stopping": True,
        "early_stopping_patience": 3,
        "early_stopping_threshold": 1000,
    }
    run = make_run(held_out=HELD_OUT, **stopping)
    child = start("train", run.path)
    wait_for_step(child, 110)
    child.kill()
    child.communicate(timeout=60)
    train(run)
    whole = make_run("whole", held_out=HELD_OUT, **stopping)
    train(whole)
    assert read_json(run.manifest_file)["steps"] == read_json(whole.manifest_file)["steps"] == 200
    assert adapter_bytes(run) == adapter_bytes(whole)


def test_a_second_signal_ends_it_at_once(make_run: MakeRun, start: Runner) -> None:
    run = make_run(max_steps=100_000)
    child = start("train", run.path)
    wait_for_step(child, 1)
    child.send_signal(signal.SIGSTOP)
    for number in (signal.SIGINT, signal.SIGINT):
        child.send_signal(number)
        time.sleep(0.05)
    child.send_signal(signal.SIGCONT)
    child.communicate(timeout=60)
    assert child.returncode in {130, -signal.SIGINT}  # one pending signal, or two


def test_adapters_of_epochs_can_be_kept_and_change_nothing_else(make_run: MakeRun) -> None:
    plain, kept = make_run("plain", num_train_epochs=5), make_run("kept", num_train_epochs=5)
    train(plain)
    train(kept, keep_epochs=True)
    assert (plain.epochs(), kept.epochs()) == ([], [3, 4, 5])
    weights = "adapter_model.safetensors"
    assert (plain.adapter / weights).read_bytes() == (kept.adapter / weights).read_bytes()
    assert (kept.epoch(5) / weights).read_bytes() == (kept.adapter / weights).read_bytes()
    assert read_json(kept.epoch(3) / "epoch.json")["step"] == 30
    assert "token_accuracy" not in plain.metrics()[0]
    assert 0 <= kept.metrics()[0]["token_accuracy"] <= 1
