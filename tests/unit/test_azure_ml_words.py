"""Azure ML's statuses, errors and log lines in our words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from maas_client.errors import (
    AuthError,
    ConflictError,
    NotFoundError,
    SettingsError,
    TargetError,
    UnreachableError,
)
from maas_client.jobs import JobStatus
from maas_client.targets.azure_ml import words
from maas_client.targets.azure_ml.log import EventLog, StreamReader, read_line
from tests.fake_azure import LINES, RAW, target

# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("NotStarted", JobStatus.QUEUED),
        ("Queued", JobStatus.QUEUED),
        ("Running", JobStatus.RUNNING),
        ("Finalizing", JobStatus.RUNNING),
        ("CancelRequested", JobStatus.RUNNING),
        ("Paused", JobStatus.PAUSED),
        ("Completed", JobStatus.SUCCEEDED),
        ("Failed", JobStatus.FAILED),
        ("Canceled", JobStatus.CANCELLED),
    ],
)
def test_each_status_has_one_word_of_ours(theirs: str, ours: JobStatus) -> None:
    assert words.job_status(theirs) is ours


@pytest.mark.parametrize("word", ["completed", "Unknown", "Levitating", ""])
def test_an_unknown_status_raises_and_never_becomes_running(word: str) -> None:
    with pytest.raises(TargetError, match="not known here"):
        words.job_status(word)


def test_a_finished_job_names_its_model_and_what_it_was_trained_on() -> None:
    job = words.job(RAW, target="mock")
    assert (job.id, job.status, job.output_model) == ("job-1", JobStatus.SUCCEEDED, "my-model:1")
    assert job.simulated
    assert job.base == "nothing"
    assert job.created_at == pytest.approx(1732520100.054551)
    assert words.job({**RAW, "status": "Running"}, target="mock").output_model is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"error": {"code": "UserError", "message": "No GPU left."}}, "UserError: No GPU left."),
        (
            {"error": {"code": "UserError", "message": "Bad.", "innerError": {"code": "OutOfMem"}}},
            "OutOfMem: Bad.",
        ),
        ({"error": {"code": "UserError", "message": ""}}, "UserError"),
        ({"message": "flat"}, "flat"),
        ({}, "the service gave no reason"),
        (" plain text ", "plain text"),
    ],
)
def test_the_reason_of_a_failure_is_told(error: Any, said: str) -> None:
    assert words.reason(error) == said


@pytest.mark.parametrize(
    ("asset", "said"),
    [
        ("azureml://locations/eastus2/workspaces/guid/models/m/versions/3", "m:3"),
        ("/subscriptions/s/resourceGroups/g/providers/x/workspaces/w/models/m/versions/1", "m:1"),
        ("azureml://registries/azureml/models/Phi-3-mini-4k-instruct", "Phi-3-mini-4k-instruct"),
        (None, ""),
    ],
)
def test_an_endpoint_names_its_model_in_short(asset: str | None, said: str) -> None:
    assert words.model_words(asset) == said


@pytest.mark.parametrize(
    ("raw", "kind", "hint"),
    [
        ({"status": 401}, AuthError, "az login"),
        ({"status": 403}, AuthError, "AzureML Data Scientist"),
        ({"status": 404}, NotFoundError, "maas jobs list"),
        ({"status": 409}, ConflictError, "another"),
        ({"status": 429}, TargetError, "quota"),
        ({"status": 400, "inner": "ModelNotSupportedByMaaS"}, TargetError, "targets check"),
        ({"status": 500}, TargetError, ""),
        ({"type": "unreachable"}, UnreachableError, "maas mock serve"),
        ({"type": "login"}, AuthError, "maas mock stop"),
        ({"type": "missing"}, SettingsError, "pip install"),
        ({"type": "ValidationException"}, TargetError, ""),
    ],
)
def test_the_services_error_is_ours(raw: Mapping[str, Any], kind: type, hint: str) -> None:
    error = words.error({"type": "http", "message": "It broke.", **raw}, name="mock", is_mock=True)
    assert type(error) is kind
    assert "It broke." in error.message
    assert hint in error.hint


def test_an_error_keeps_status_codes_and_request_id_and_loses_its_secrets() -> None:
    raw = {
        "type": "http",
        "message": "\x1b[31mGET https://x/y?sv=1&sig=c2VjcmV0%3D&se=2 eyJhbGci.eyJzdWIi.c2ln failed",
        "status": 400,
        "code": "UserError",
        "inner": "BadData",
        "request_id": "abc",
    }
    error = words.error(raw, name="azure")
    assert isinstance(error, TargetError)
    assert (error.status, error.code, error.request_id) == (400, "UserError.BadData", "abc")
    assert error.message == "GET https://x/y?sv=1&sig=<redacted>&se=2 <redacted> failed"


# --- the log ------------------------------------------------------------------------------------

CHATTER = """\
RunId: job-1
Web View: https://ml.azure.com/runs/job-1

Streaming user_logs/std_log.txt
===============================

{lines}
Execution Summary
=================
RunId: job-1
Web View: https://ml.azure.com/runs/job-1

"""


def test_the_sdks_chatter_is_filtered_and_the_log_is_kept() -> None:
    reader = StreamReader()
    reader.feed(CHATTER.format(lines="loading\n\n  indented\n=====\n"))
    assert reader.lines == ["loading", "  indented", "====="]
    assert reader.is_whole


def test_a_stream_that_broke_goes_on_where_it_was() -> None:
    first = StreamReader()
    first.feed("RunId: x\n\nStreaming user_logs/std_log.txt\n====\n\none\ntwo\nthr")
    assert first.lines == ["one", "two"]
    assert not first.is_whole
    second = first.again()
    second.feed(CHATTER.format(lines="one\ntwo\nthree\nfour\n"))
    assert second.lines == ["one", "two", "three", "four"]
    assert second.is_whole


def test_a_stream_of_an_ended_job_shows_no_log_and_is_not_whole() -> None:
    reader = StreamReader()
    reader.feed("RunId: x\nWeb View: y\n\nExecution Summary\n=====\nRunId: x\n\n")
    assert reader.lines == []
    assert not reader.is_whole


@pytest.mark.parametrize(
    ("line", "data"),
    [
        (
            "{'loss': 2.31, 'grad_norm': 1.2, 'learning_rate': 5e-05, 'epoch': 0.13, 'step': 20,"
            " 'max_steps': 160, 'tokens_per_second': 812.0, 'seconds_left': 31.0}",
            {
                "step": 20,
                "max_steps": 160,
                "loss": 2.31,
                "learning_rate": 5e-05,
                "grad_norm": 1.2,
                "epoch": 0.13,
                "tokens_per_second": 812.0,
                "seconds_left": 31.0,
            },
        ),
        (
            "{'eval_loss': 1.9, 'epoch': 1.0, 'step': 160}",
            {"step": 160, "eval_loss": 1.9, "epoch": 1.0},
        ),
        ("{'loss': '2.31', 'epoch': '0.5'}", {"loss": 2.31, "epoch": 0.5}),
    ],
)
def test_a_trainers_dict_is_a_metric(line: str, data: Mapping[str, float]) -> None:
    kind, message, found = read_line(line)
    assert (kind, dict(found)) == ("metric", data)
    assert "loss" in message


@pytest.mark.parametrize(
    "line",
    [
        "loading weights",
        "{'train_runtime': 3.0, 'epoch': 1.0}",
        "{'loss': nan, 'epoch': 1.0}",
        "{'loss': __import__('os')}",
        "{'loss': [1]}",
        "{'loss': 1e999}",
        "{loss}",
        "{" * 5000 + "}" * 5000,
        "",
    ],
)
def test_every_other_line_is_a_log_line_in_its_own_words(line: str) -> None:
    assert read_line(line) == ("log", line, {})


def test_a_job_that_is_followed_and_one_that_is_read_later_count_alike() -> None:
    live, later = EventLog(), EventLog()
    live.update(JobStatus.QUEUED, [], at=1)
    live.update(JobStatus.RUNNING, [], at=2)
    live.update(JobStatus.RUNNING, LINES[:2], at=3)
    live.update(JobStatus.SUCCEEDED, [], at=4, complete=False)
    live.update(JobStatus.SUCCEEDED, LINES[2:], at=5)
    live.update(JobStatus.SUCCEEDED, [], at=6)
    later.update(JobStatus.SUCCEEDED, LINES, at=9)

    def bare(log: EventLog) -> list[tuple[int, str, str]]:
        return [(event.seq, event.kind, event.message) for event in log.events]

    assert bare(live) == bare(later)
    assert [event.seq for event in live.events] == [1, 2, 3, 4, 5]
    assert [event.kind for event in live.events] == ["status", "log", "metric", "log", "status"]


def test_a_failed_jobs_last_event_says_why() -> None:
    log = EventLog()
    log.update(JobStatus.FAILED, ["boom"], at=1, error="OutOfMemory")
    assert log.events[-1].message == "failed: OutOfMemory"
    assert log.events[-1].data == {"status": "failed"}


def test_a_job_cancelled_in_the_queue_never_ran() -> None:
    log = EventLog()
    log.update(JobStatus.CANCELLED, [], at=1)
    assert [event.data["status"] for event in log.events] == ["cancelled"]


def test_events_asks_only_for_what_is_new() -> None:
    def lines(name: str, skip: int) -> Any:
        return {"job": {**RAW, "name": name}, "lines": LINES[skip:], "complete": True}

    place = target(lines=lines)
    assert [event.seq for event in place.events("job-1")] == [1, 2, 3, 4, 5]
    assert list(place.events("job-1", after=5)) == []
    assert [event.seq for event in place.events("job-1", after=3)] == [4, 5]
