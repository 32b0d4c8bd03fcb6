"""What a job file says on OpenAI's wire, what it cannot say, and the service's words in ours."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from maas_client.errors import PlanError, TargetError
from maas_client.jobs import JobStatus
from maas_client.plan import Plan
from maas_client.targets.foundry import words
from tests.conftest import JOB, ROW
from tests.fake_openai import CSV, FakeService, planned

# The default of Phi-3-mini-4k is 5e-06.
RATE = 'learning_rate: "0.00002"'


def plan(folder: Path, knobs: str = RATE, *, rows: int = 10, job: str = JOB) -> Plan:
    (folder / "train.jsonl").write_text("".join(f"{ROW}\n" for _ in range(rows)))
    (folder / "job.yaml").write_text(job.replace(RATE, knobs))
    return planned(folder / "job.yaml", FakeService().target())


def refusals(folder: Path, *given: Any, **more: Any) -> str:
    with pytest.raises(PlanError) as caught:
        plan(folder, *given, **more)
    return "\n".join(str(problem) for problem in caught.value.problems)


def knobs(**values: str) -> str:
    return "\n  ".join(f'{key}: "{value}"' for key, value in values.items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rate": "0.00002"}, (1, 1, 4)),
        ({"learning_rate_multiplier": "0.5"}, (1, 1, 0.5)),
        ({"learning_rate": "0.00001", "learning_rate_multiplier": "0.5"}, (1, 1, 1)),
        (
            {
                "num_train_epochs": "3",
                "per_device_train_batch_size": "4",
                "gradient_accumulation_steps": "2",
            },
            (3, 8, 1),
        ),
    ],
)
def test_the_knobs_are_translated(
    tmp_path: Path, given: dict[str, str], said: tuple[float, ...]
) -> None:
    body = words.job_body(plan(tmp_path, knobs(**given)), "file-1", None)
    assert body["method"] == {
        "type": "supervised",
        "supervised": {
            "hyperparameters": dict(
                zip(("n_epochs", "batch_size", "learning_rate_multiplier"), said, strict=True)
            )
        },
    }


def test_the_body_is_the_whole_job(tmp_path: Path) -> None:
    job = JOB.replace("task:", "display_name: Taps\ntags:\n  team: a\ntask:")
    body = words.job_body(plan(tmp_path, knobs(seed="7"), job=job), "file-1", "file-2")
    assert body["model"] == "Phi-3-mini-4k-instruct"
    assert (body["training_file"], body["validation_file"]) == ("file-1", "file-2")
    assert (body["seed"], body["suffix"]) == (7, "my-model")
    assert body["metadata"] == {"team": "a", "display_name": "Taps"}


def test_the_plan_shows_what_will_be_said(tmp_path: Path) -> None:
    made = plan(tmp_path, knobs(learning_rate="0.00002", per_device_train_batch_size="4"))
    notes = {entry.key: entry.note for entry in made.hyperparameters}
    assert "learning_rate_multiplier 4 of" in notes["learning_rate"]
    assert "batch_size 4" in notes["per_device_train_batch_size"]
    assert "n_epochs 1" in notes["num_train_epochs"]
    assert "lora_r" not in notes
    assert json.loads(json.dumps(made.to_json()))["steps"] == 3


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"lora_r": "16"}, "learning_rate_multiplier"),
        ({"max_steps": "10"}, "num_train_epochs"),
        ({"warmup_ratio": "0.1"}, "learning_rate"),
        ({"batch_size_multiplier": "2"}, "per_device_train_batch_size"),
        ({"save_steps": "5", "save_strategy": "steps"}, "checkpoint after each epoch"),
        ({"num_train_epochs": "1.5"}, "2 is the nearest"),
        ({"num_train_epochs": "70"}, "50 is the nearest"),
        ({"per_device_train_batch_size": "300"}, "256 is the most"),
        ({"learning_rate": "0.00004"}, "2.5e-05 is the highest"),
        ({"learning_rate": "0.0000033333333333333333"}, "not exact"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_nearest(
    tmp_path: Path, given: dict[str, str], nearest: str
) -> None:
    text = refusals(tmp_path, knobs(**given))
    assert nearest in text
    assert all(f"hyperparameters.{key}" in text for key in given)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("task: chat_completion", "task: text_completion", "task text_completion"),
        ("Phi-3-mini-4k-instruct", "gpt-nobody", "not a model of the catalogue"),
        ("task:", "compute: gpus\ntask:", "compute cannot be said"),
        ("task:", "properties: {a: b}\ntask:", "tags are sent"),
        ("name: my-model", "name: a-name-of-more-than-18", "at most 18"),
        ("task:", "tags: {maas_key: x}\ntask:", "tags.maas_key"),
        ("task:", f"tags: {{a: {'x' * 513}}}\ntask:", "a value 512"),
        ("task:", f"tags: {{{', '.join(f'k{n}: v' for n in range(17))}}}\ntask:", "at most 16"),
        ("path: train.jsonl", "path: azureml:rows:1", "not on this disk"),
    ],
)
def test_a_job_that_the_wire_cannot_say_is_refused(
    tmp_path: Path, old: str, new: str, word: str
) -> None:
    assert word in refusals(tmp_path, job=JOB.replace(old, new, 1))


def test_nine_rows_are_too_few(tmp_path: Path) -> None:
    assert "at least 10" in refusals(tmp_path, rows=9)


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("validating_files", JobStatus.QUEUED),
        ("pending", JobStatus.QUEUED),
        ("queued", JobStatus.QUEUED),
        ("resuming", JobStatus.QUEUED),
        ("running", JobStatus.RUNNING),
        ("pausing", JobStatus.RUNNING),
        ("paused", JobStatus.PAUSED),
        ("succeeded", JobStatus.SUCCEEDED),
        ("failed", JobStatus.FAILED),
        ("cancelled", JobStatus.CANCELLED),
    ],
)
def test_each_status_has_our_word(word: str, ours: JobStatus) -> None:
    assert words.job_status(word) is ours


def test_an_unknown_status_never_becomes_running() -> None:
    with pytest.raises(TargetError, match="'daydreaming'"):
        words.job_status("daydreaming")


@pytest.mark.parametrize("content", [CSV, b"\xef\xbb\xbf" + CSV, base64.b64encode(CSV)])
def test_a_result_file_is_read_plain_or_in_base64(content: bytes) -> None:
    assert list(words.results(content)) == [
        {"step": 1, "loss": 2.5, "token_accuracy": 0.4},
        {
            "step": 2,
            "loss": 1.5,
            "token_accuracy": 0.6,
            "eval_loss": 1.75,
            "eval_token_accuracy": 0.5,
        },
    ]


def test_what_is_no_result_file_is_said() -> None:
    with pytest.raises(TargetError, match="neither"):
        list(words.results(b"<html>"))


def test_nulls_are_as_good_as_nothing() -> None:
    raw = {"id": "ftjob-1", "status": "running", "model": "m", "metadata": None, "error": None}
    job = words.job(raw, target="foundry")
    assert (job.display_name, job.error, job.output_model) == ("", None, None)
    assert words.event({"message": None, "data": None})[:2] == ("log", "")
