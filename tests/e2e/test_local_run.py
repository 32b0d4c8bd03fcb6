"""`maas run` on this machine, through the command line, on the tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maas_client import evaluation, flow
from maas_client.cli.main import run_cli
from maas_client.errors import ConflictError, NotFoundError, TargetError
from maas_client.jobs import JobStatus
from maas_client.settings import LocalSettings
from maas_client.spec.rundir import RunDir
from maas_client.targets.local import LocalTarget


def maas(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maas_client", *words], capture_output=True, text=True, check=False
    )


def test_a_run_leaves_every_file_it_promises(in_folder: Path) -> None:
    done = maas("run", "job.yaml", "--base", "tiny", "--name", "one")
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stderr  # what ran on it says so
    run = RunDir(in_folder / "runs" / "one")
    for file in (run.job_file, run.plan_file, run.manifest_file, run.events_file, run.metrics_file):
        assert file.exists(), file
    assert (run.adapter / "adapter_model.safetensors").stat().st_size > 1000
    status = run.read_status()
    assert status is not None
    assert status.status is JobStatus.SUCCEEDED
    assert [event.seq for event in run.events()] == list(range(1, len(list(run.events())) + 1))


@pytest.mark.usefixtures("in_folder")
def test_json_is_one_event_a_line_and_then_the_run() -> None:
    done = maas("run", "job.yaml", "--base", "tiny", "--name", "one", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["seq"] == 1
    assert lines[-2]["job"]["status"] == "succeeded"
    assert Path(lines[-1]["adapter"]).is_dir()


@pytest.mark.usefixtures("in_folder")
def test_a_simulated_run_says_so_everywhere() -> None:
    done = maas("run", "job.yaml", "--simulate", "--name", "sim")
    assert done.returncode == 0, done.stderr
    assert "(simulated)" in done.stdout
    assert "(simulated)" in maas("jobs", "list").stdout
    assert json.loads(maas("jobs", "show", "sim", "--json").stdout)["simulated"] is True


def test_no_weights_is_a_clear_failure_that_names_the_stand_in(in_folder: Path) -> None:
    done = maas("run", "job.yaml")
    assert done.returncode == 1
    assert "--base stand-in" in done.stderr
    assert not (in_folder / "runs").exists()


def test_ctrl_c_leaves_an_honest_run_that_goes_on_where_it_was(in_folder: Path) -> None:
    job = (in_folder / "job.yaml").read_text()
    (in_folder / "job.yaml").write_text(
        job.replace(
            "hyperparameters:", 'hyperparameters:\n  max_steps: "400"\n  logging_steps: "1"'
        )
    )
    words = [
        sys.executable,
        "-m",
        "maas_client",
        "run",
        "job.yaml",
        "--base",
        "tiny",
        "--name",
        "two",
    ]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if "loss" in line:
            break
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "resume with: maas run job.yaml --target local --base tiny --name two" in errors
    run = RunDir(in_folder / "runs" / "two")
    status = run.read_status()
    assert status is not None
    assert status.status is not JobStatus.SUCCEEDED
    assert run.checkpoint_steps()
    assert not run.is_locked()
    again = maas("run", "job.yaml", "--base", "tiny", "--name", "two")
    assert again.returncode == 0, again.stderr
    whole = maas("run", "job.yaml", "--base", "tiny", "--name", "three")
    assert whole.returncode == 0, whole.stderr
    adapters = [
        (in_folder / "runs" / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("two", "three")
    ]
    assert adapters[0] == adapters[1]


def test_the_same_plan_twice_is_one_run_and_another_plan_is_a_conflict(in_folder: Path) -> None:
    target = LocalTarget(LocalSettings(), engine="simulate")
    plan = flow.plan_job("job.yaml", target, name="one")
    handle = flow.submit(plan, target)
    assert handle.wait().status is JobStatus.SUCCEEDED
    before = RunDir(target.path("one")).manifest_file.stat().st_mtime_ns
    assert flow.submit(plan, target).wait().status is JobStatus.SUCCEEDED
    assert RunDir(target.path("one")).manifest_file.stat().st_mtime_ns == before
    (in_folder / "train.jsonl").write_text(
        (in_folder / "train.jsonl").read_text().replace("Left", "Right")
    )
    with pytest.raises(ConflictError, match="another plan"):
        flow.submit(flow.plan_job("job.yaml", target, name="one"), target)


def test_a_run_can_be_listed_shown_followed_and_downloaded(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["run", "job.yaml", "--simulate", "--name", "one"]) == 0
    capsys.readouterr()
    assert run_cli(["jobs", "list", "--json"]) == 0
    assert [job["id"] for job in json.loads(capsys.readouterr().out)] == ["one"]
    assert run_cli(["jobs", "follow", "one"]) == 0
    assert run_cli(["jobs", "logs", "one", "--json"]) == 0
    assert run_cli(["jobs", "download", "one", "--out", "copy"]) == 0
    assert (in_folder / "copy" / "adapter").is_dir()
    assert run_cli(["jobs", "download", "one", "--out", "copy"]) == 1
    assert run_cli(["jobs", "show", "absent"]) == 1


def test_a_cancelled_run_stops_and_says_so(in_folder: Path) -> None:
    job = (in_folder / "job.yaml").read_text()
    (in_folder / "job.yaml").write_text(
        job.replace("hyperparameters:", 'hyperparameters:\n  max_steps: "100000"')
    )
    target = LocalTarget(LocalSettings())
    handle = flow.submit(flow.plan_job("job.yaml", target, base="tiny"), target)
    handle.cancel()
    job_end = handle.wait()
    assert job_end.status is JobStatus.CANCELLED
    with pytest.raises(TargetError, match="cancelled"):
        flow.collect(handle)


def test_a_runner_that_dies_is_a_failure_and_can_be_resumed(in_folder: Path) -> None:
    job = (in_folder / "job.yaml").read_text()
    (in_folder / "job.yaml").write_text(
        job.replace("hyperparameters:", 'hyperparameters:\n  max_steps: "300"')
    )
    target = LocalTarget(LocalSettings())
    plan = flow.plan_job("job.yaml", target, base="tiny", name="one")
    handle = flow.submit(plan, target)
    for event in handle.follow():
        if event.kind == "metric":
            pid = RunDir(target.path("one")).process()
            assert pid
            os.kill(pid, signal.SIGKILL)
            break
    job_end = handle.wait()
    assert job_end.status is JobStatus.FAILED
    assert "resume" in (job_end.error or "")
    assert flow.submit(plan, target).wait().status is JobStatus.SUCCEEDED


@pytest.mark.usefixtures("in_folder")
def test_an_absent_run_is_not_found() -> None:
    with pytest.raises(NotFoundError):
        LocalTarget(LocalSettings()).get("../../etc")


def test_what_was_simulated_or_broken_is_said_and_hides_nothing(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["run", "job.yaml", "--simulate", "--name", "sim"]) == 0
    (in_folder / "runs" / "bad").mkdir()
    (in_folder / "runs" / "bad" / "plan.json").write_text("{")
    capsys.readouterr()
    assert run_cli(["jobs", "list", "--json"]) == 0
    listed = {job["id"]: job["error"] for job in json.loads(capsys.readouterr().out)}
    assert listed["sim"] is None
    assert "unreadable" in listed["bad"]
    for words in (
        ["evaluate", "runs/sim", "--data", "train.jsonl"],
        ["chat", "--local", "runs/sim", "x"],
    ):
        assert run_cli(words) == 1
        assert "simulated: nothing was trained" in capsys.readouterr().err


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("name", ["../x", "", "a b"])
def test_a_name_that_no_job_can_have_is_a_usage_error(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["run", "job.yaml", "--base", "tiny", "--name", name]) == 2
    assert "cannot be a job's name" in capsys.readouterr().err


def test_evaluating_checks_its_rows_and_cuts_them_as_the_run_did(in_folder: Path) -> None:
    job = (in_folder / "job.yaml").read_text()
    job = job.replace("hyperparameters:", 'hyperparameters:\n  max_seq_length: "60"')
    job = job.replace("training_data:", "validation_data: {path: train.jsonl}\ntraining_data:")
    (in_folder / "job.yaml").write_text(job)
    run = flow.run("job.yaml", LocalTarget(LocalSettings()), base="tiny")
    losses = [metric["eval_loss"] for metric in run.metrics() if "eval_loss" in metric]
    measured = [entry["loss"] for entry in evaluation.evaluate(run.path, "train.jsonl")["results"]]
    assert measured == pytest.approx([losses[0], losses[-1]], abs=1e-5)
    (in_folder / "empty.jsonl").write_text("")
    done = maas("evaluate", str(run.path), "--data", "empty.jsonl")
    assert done.returncode == 1
    assert "the file holds no row" in done.stderr


def test_a_module_of_the_working_folder_is_not_taken_for_ours(in_folder: Path) -> None:
    (in_folder / "tokenizers.py").write_text("raise SystemExit('imported from the working folder')")
    assert maas("plan", "job.yaml", "--base", "tiny").returncode == 0
