"""The main job on the mock that trains, through azure-ai-ml; and the server killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maas_client import flow
from maas_client.jobs import JobStatus
from maas_client.settings import LocalSettings
from maas_client.spec.rundir import RunDir
from maas_client.targets.azure_ml import AzureMLTarget
from maas_client.targets.local import LocalTarget
from tests.mocking import Mock, mock_command, start_mock

LONG = 'hyperparameters:\n  max_steps: "600"\n  logging_steps: "20"'
TRAIN = ("--engine", "train", "--base", "tiny")


@contextmanager
def target_on(mock: Mock) -> Iterator[AzureMLTarget]:
    target = AzureMLTarget(mock.settings)
    try:
        yield target
    finally:
        target.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A mock's home; whatever still runs from it is stopped at the end."""
    folder = tmp_path / "mock"
    yield folder
    mock_command(folder, "stop")


def lengthen(folder: Path) -> None:
    file = folder / "job.yaml"
    file.write_text(file.read_text().replace("hyperparameters:", LONG))


def adapter_bytes(run: RunDir) -> list[bytes]:
    return [
        (run.adapter / name).read_bytes()
        for name in ("adapter_model.safetensors", "adapter_config.json")
    ]


def job_of(home: Path) -> dict[str, object]:
    """What the server remembers of its one job, read beside it."""
    with sqlite3.connect(home / "store.sqlite") as db:
        (body,) = db.execute("SELECT body FROM documents WHERE kind = 'job'").fetchone()
    return dict(json.loads(body))


def wait_for_metrics(run: RunDir, count: int) -> None:
    end = time.monotonic() + 120
    while len(run.metrics()) < count:
        assert time.monotonic() < end, "no metrics came"
        time.sleep(0.05)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_the_main_job_from_plan_to_undeploy_and_the_same_bytes_as_a_local_run(
    in_folder: Path, home: Path
) -> None:
    job = in_folder / "job.yaml"
    job.write_text(
        job.read_text().replace(
            "training_data:", "validation_data: {path: train.jsonl}\ntraining_data:"
        )
    )
    with target_on(start_mock(home, *TRAIN)) as target:
        plan = flow.plan_job("job.yaml", target)
        handle = flow.submit(plan, target)
        events = list(handle.follow())
        assert any(
            "tiny random Phi-3" in event.message for event in events
        )  # what ran on it says so
        losses = [event.data["loss"] for event in events if "loss" in event.data]
        assert losses
        done = handle.get()
        assert (done.status, done.output_model) == (JobStatus.SUCCEEDED, "my-model:1")
        assert "tiny" in done.base
        assert not done.simulated
        run = flow.collect(handle, in_folder / "downloaded")
        assert [metric["loss"] for metric in run.metrics() if "loss" in metric] == losses
        endpoint = flow.deploy("my-model", target)
        assert endpoint.state == "online"
        chat = flow.open_chat(endpoint.name, target)
        answer = chat.ask("Where is the tap?", max_tokens=5)
        assert answer.completion_tokens == 5
        assert "".join(chat.stream("Where is the tap?", max_tokens=5)) == answer.text
        chat.close()
        here = flow.open_local_chat(run.path)
        assert here.ask("Where is the tap?", max_tokens=5).text == answer.text
        here.close()
        flow.hosting(target).undeploy(endpoint.name)
        assert flow.hosting(target).endpoints() == []
    local = flow.run("job.yaml", LocalTarget(LocalSettings()), base="tiny")
    assert adapter_bytes(local) == adapter_bytes(run)


def test_a_killed_server_adopts_the_trainer_that_lives_on(in_folder: Path, home: Path) -> None:
    lengthen(in_folder)
    with target_on(first := start_mock(home, *TRAIN)) as target:
        handle = flow.submit(flow.plan_job("job.yaml", target, name="one"), target)
        run = RunDir(home / "runs" / "one")
        wait_for_metrics(run, 2)
        trainer = run.process()
        kill(first.state.pid)
    with target_on(start_mock(home, *TRAIN)) as target:
        job = flow.JobHandle(target, handle.id).wait()
        assert job.status is JobStatus.SUCCEEDED
    assert run.process() == trainer  # the same process began and ended it
    assert job_of(home)["starts"] == 1
    assert sum(event.data.get("status") == "succeeded" for event in run.events()) == 1


def test_a_killed_server_and_trainer_go_on_from_the_checkpoint(in_folder: Path, home: Path) -> None:
    lengthen(in_folder)
    job = in_folder / "job.yaml"
    job.write_text(
        job.read_text().replace(
            "hyperparameters:", 'hyperparameters:\n  save_strategy: steps\n  save_steps: "50"'
        )
    )
    with target_on(first := start_mock(home, *TRAIN)) as target:
        flow.submit(flow.plan_job("job.yaml", target, name="one"), target)
        run = RunDir(home / "runs" / "one")
        wait_for_metrics(run, 4)
        kill(first.state.pid)
        trainer = run.process()
        assert trainer
        kill(trainer)
    with target_on(start_mock(home, *TRAIN)) as target:
        assert flow.JobHandle(target, "one").wait().status is JobStatus.SUCCEEDED
    assert run.process() != trainer
    assert any("resumed at step" in event.message for event in run.events())
    assert sum(event.data.get("status") == "succeeded" for event in run.events()) == 1
    whole = flow.run("job.yaml", LocalTarget(LocalSettings()), base="tiny")
    assert adapter_bytes(whole) == adapter_bytes(run)


def test_a_job_beyond_the_capacity_is_queued_and_a_running_one_can_be_cancelled(
    in_folder: Path, home: Path
) -> None:
    lengthen(in_folder)
    with target_on(start_mock(home, *TRAIN)) as target:
        handles = [
            flow.submit(flow.plan_job("job.yaml", target, name=name), target) for name in ("a", "b")
        ]
        wait_for_metrics(RunDir(home / "runs" / "a"), 1)
        assert [handle.get().status for handle in handles] == [JobStatus.RUNNING, JobStatus.QUEUED]
        handles[0].cancel()
        assert handles[0].get().status is JobStatus.CANCELLED
        wait_for_metrics(RunDir(home / "runs" / "b"), 1)
        handles[1].cancel()
        assert [job.id for job in target.list()] == ["b", "a"]


def test_a_job_that_the_engine_cannot_run_fails_and_says_why(in_folder: Path, home: Path) -> None:
    job = in_folder / "job.yaml"
    job.write_text(
        job.read_text().replace("hyperparameters:", 'hyperparameters:\n  precision: "16"')
    )
    with target_on(start_mock(home, *TRAIN)) as target:
        ended = flow.submit(flow.plan_job("job.yaml", target), target).wait()
        assert ended.status is JobStatus.FAILED
        assert "precision" in (ended.error or "")
