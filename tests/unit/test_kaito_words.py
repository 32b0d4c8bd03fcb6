"""Kaito's words in ours."""

from __future__ import annotations

from typing import Any

import pytest

from maas_client.errors import TargetError
from maas_client.jobs import JobStatus
from maas_client.targets.kaito import words

NOTHING: dict[str, Any] = {"metadata": {"name": "a", "creationTimestamp": "2026-11-24T12:00:00Z"}}


def there(state: str | None = None, **conditions: tuple[str, str]) -> dict[str, Any]:
    rows = [
        {"type": kind, "status": status, "reason": reason, "message": f"{kind} says {reason}"}
        for kind, (status, reason) in conditions.items()
    ]
    return {**NOTHING, "status": {"conditions": rows, **({"state": state} if state else {})}}


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (NOTHING, JobStatus.QUEUED),
        (there("Pending"), JobStatus.QUEUED),
        (there("Running"), JobStatus.RUNNING),
        (there("Succeeded"), JobStatus.SUCCEEDED),
        (there("Failed"), JobStatus.FAILED),
        # Before there was a state:
        (there(ResourceReady=("False", "NodeNotReady")), JobStatus.QUEUED),
        (there(JobStarted=("True", "WorkspaceTuningJobStatusStarted")), JobStatus.RUNNING),
        (there(JobStarted=("False", "WorkspaceTuningJobStatusPending")), JobStatus.QUEUED),
        (there(JobStarted=("False", "WorkspaceTuningJobStatusFailed")), JobStatus.FAILED),
        (there(WorkspaceSucceeded=("True", "workspaceSucceeded")), JobStatus.SUCCEEDED),
    ],
)
def test_a_workspace_is_a_status(raw: dict[str, Any], word: JobStatus) -> None:
    assert words.status(raw) is word


def test_a_state_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(TargetError, match="'Dreaming', which is not known"):
        words.status(there("Dreaming"))


def pod(**exits: int | None) -> dict[str, Any]:
    states = [
        {
            "name": name,
            "state": {"running": {}} if code is None else {"terminated": {"exitCode": code}},
        }
        for name, code in exits.items()
    ]
    return {"status": {"containerStatuses": states}}


@pytest.mark.parametrize(
    ("found", "done"),
    [
        (pod(a=0, pusher=0, pause=None), True),
        (pod(a=0, pusher=None, pause=None), False),
        (pod(a=0, pusher=1, pause=None), False),
        (pod(a=None), False),
        ({"status": {}}, False),
    ],
)
def test_work_is_done_when_all_that_works_has_ended_well(
    found: dict[str, Any], *, done: bool
) -> None:
    assert words.work_is_done([found]) is done


def test_the_reason_names_the_container() -> None:
    raw = there("Failed", WorkspaceSucceeded=("False", "workspaceFailed"))
    killed = pod(a=137, pusher=None)
    killed["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] = "OOMKilled"
    assert words.reason(raw, [killed]) == "container a ended with exit code 137: OOMKilled"
    assert words.reason(raw, []) == "WorkspaceSucceeded says workspaceFailed"
    assert words.reason(NOTHING, []) == "Kaito gave no reason"


LOG = (
    "2026-11-24T12:02:00.000000001Z Model Loaded\n"
    "2026-11-24T12:02:01.5Z   0%|          | 0/30 [00:00<?, ?it/s]\r 33%|###   | 10/30 [00:09<00:18]\n"
    "2026-11-24T12:02:02Z {'loss': 2.5, 'grad_norm': 1.25, 'learning_rate': 2e-05, 'epoch': 0.3}\n"
    "2026-11-24T12:02:03Z {'loss': '1.5', 'learning_rate': '1e-05', 'epoch': '0.6'}\n"
    "2026-11-24T12:02:04Z {'loss': nan, 'epoch': 0.9}\n"
    "2026-11-24T12:02:05Z api-key=abcdefgh12345\n"
    "2026-11-24T12:02:06Z half a li"
)


def test_a_log_is_metrics_and_lines() -> None:
    lines = list(words.log_lines(LOG, whole=False))
    assert lines[0] == (1795521720.0, "Model Loaded")
    assert len(lines) == 6  # the last may be half a line
    raw = there("Running", ResourceReady=("True", "ok"), JobStarted=("True", "started"))
    job = words.job(raw, words.status(raw), target="kaito")
    found = words.events(raw, job, lines, 10)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    assert [event.message for event in found if event.kind != "metric"] == [
        "node: ResourceReady says ok",
        "running",
        "Model Loaded",
        "{'loss': nan, 'epoch': 0.9}",
        "api-key=***",
    ]
    assert [event.data for event in found if event.kind == "metric"] == [
        {"step": 10, "max_steps": 30, "loss": 2.5, "grad_norm": 1.25, "learning_rate": 2e-05, "epoch": 0.3},
        {"step": 20, "max_steps": 30, "loss": 1.5, "learning_rate": 1e-05, "epoch": 0.6},
    ]  # fmt: skip


def test_events_keep_their_numbers_as_the_job_goes_on() -> None:
    stages = [
        (NOTHING, ""),
        (there("Pending", ResourceReady=("False", "waiting")), ""),
        (there("Running", ResourceReady=("True", "ready"), JobStarted=("True", "s")), LOG),
        (there("Succeeded", ResourceReady=("True", "ready"), JobStarted=("True", "s")), LOG),
    ]
    seen: list[tuple[int, str]] = []
    for raw, text in stages:
        word = words.status(raw)
        lines = words.log_lines(text, whole=word.is_terminal)
        found = words.events(raw, words.job(raw, word, target="kaito"), lines, 10)
        told = [(event.seq, event.kind) for event in found]
        assert told[: len(seen)] == seen
        seen = told
    assert seen[-1][1] == "status"
