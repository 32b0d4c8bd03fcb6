"""The command line: exit codes, JSON, and words for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maas_client.cli import render
from maas_client.cli.main import run_cli
from maas_client.jobs import Job, JobStatus


def test_validate_exits_with_0_or_1_and_reports_each_row(
    job_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = job_folder / "train.jsonl"
    assert run_cli(["validate", str(rows)]) == 0
    assert "3 rows, all good" in capsys.readouterr().out
    rows.write_text(rows.read_text() + "{}\n[]\n")
    assert run_cli(["validate", str(rows), "--task", "chat_completion"]) == 1
    out = capsys.readouterr().out
    assert "line 4, column 1" in out
    assert "line 5, column 1" in out
    assert "2 of 5 rows are bad" in out


def test_validate_speaks_json(job_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job_folder / "train.jsonl").write_text("{}\n")
    assert run_cli(["validate", str(job_folder / "train.jsonl"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["problems"][0]["code"] == "no_messages"


def test_validate_of_a_missing_file_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["validate", str(tmp_path / "absent.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_wrong_job_file_is_a_usage_error(
    job_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job_folder / "job.yaml").write_text("type: finetuning\n")
    assert run_cli(["plan", str(job_folder / "job.yaml")]) == 2
    assert "training_data is missing" in capsys.readouterr().err


def test_an_error_is_json_for_programs(
    job_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job_folder / "job.yaml").write_text("type: finetuning\n")
    assert run_cli(["plan", str(job_folder / "job.yaml"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "SpecError"
    assert {problem["code"] for problem in error["problems"]} >= {"missing_key"}


@pytest.mark.parametrize("words", [["nosuch"], ["plan"], ["jobs", "show"], ["models", "--nosuch"]])
def test_bad_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(words) == 2
    assert "Usage" in capsys.readouterr().err


def test_models_lists_and_shows_and_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["models", "--json"]) == 0
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert "Phi-3-mini-4k-instruct" in names
    assert run_cli(["models", "phi-3-small-8k-instruct"]) == 0
    assert "query_key_value" in capsys.readouterr().out
    assert run_cli(["models", "Phi-3-mini-4k-instrct"]) == 1
    assert "did you mean Phi-3-mini-4k-instruct?" in capsys.readouterr().err


def test_init_writes_a_file_that_plans(
    job_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job_folder / "new.yaml"
    assert run_cli(["init", str(file), "--data", "train.jsonl"]) == 0
    assert run_cli(["init", str(file)]) == 2  # never overwritten
    assert run_cli(["init", str(job_folder / "x.yaml"), "--model", "Phi-3-mini"]) == 2
    capsys.readouterr()
    assert run_cli(["plan", str(file), "--target", "local", "--base", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["targets", "list", "--json"]) == 0
    assert "local" in json.loads(capsys.readouterr().out)


def test_an_unknown_target_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["jobs", "list", "--target", "nowhere"]) == 2
    assert "maas.toml" in capsys.readouterr().err


def test_a_jobs_id_stays_in_one_piece_so_that_it_can_be_copied(
    capsys: pytest.CaptureFixture[str],
) -> None:
    number, model = "ftjob-4634953d48024f5d9046542893c0412c", "ft:phi-3-mini-4k-instruct:mock:s:1"
    job = Job(number, JobStatus.SUCCEEDED, "Phi-3-mini-4k-instruct", "x", output_model=model)
    render.jobs([job], as_json=False)
    assert number in capsys.readouterr().out
