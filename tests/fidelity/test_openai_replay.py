"""A recorded journal of OpenAI's wire, played to a mock again: the same answers, under other ids."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.mocking import mock_command, running_mock
from tests.openai_clients import HELLO, Doors, rows, tuned


def use_everything(client: openai.OpenAI) -> None:
    """What a program does: files whole and in parts, a job, its lists, its models, and what is refused."""
    content = rows()
    upload = client.uploads.create(
        bytes=len(content), filename="t.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    halves = (content[:500], content[500:])
    parts = [client.uploads.parts.create(upload.id, data=io.BytesIO(half)) for half in halves]
    client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    job = tuned(client, content=content, suffix="mine")
    events = [event.id for event in client.fine_tuning.jobs.list_events(job.id, limit=10)]
    assert len(events) > 10  # more than a page
    client.files.content(job.result_files[0])
    for kept in client.fine_tuning.jobs.checkpoints.list(job.id):
        client.models.retrieve(kept.fine_tuned_model_checkpoint)
    for stream in (False, True):
        answer = client.chat.completions.create(
            model=job.fine_tuned_model, messages=HELLO, n=2, seed=1, stream=stream
        )
        assert list(answer)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-none")
    with pytest.raises(openai.BadRequestError):
        tuned(client, model="gpt-9")
    client.files.delete(job.training_file)


def test_a_recorded_program_gets_the_same_answers_and_a_changed_one_is_found(
    tmp_path: Path,
) -> None:
    options = ("--engine", "simulate", "--simulate-seconds", "0.3")
    with running_mock(tmp_path / "mock", *options) as mock:
        with Doors(mock).openai() as client:
            use_everything(client)
        journal = tmp_path / "mine.jsonl"
        journal.write_bytes((mock.home / "journal.jsonl").read_bytes())
        mock_command(mock.home, "reset")
        said = mock_command(mock.home, "replay", str(journal)).stdout
        assert ", 0 left out, 0 differ" in said, said
        entries = [json.loads(line) for line in journal.read_text().splitlines()]
        made = next(entry for entry in entries if entry["path"].endswith("/jobs"))
        made["reply"] = made["reply"].replace('"mine"', '"other"')
        journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        mock_command(mock.home, "reset")
        words = ("mock", "--home", str(mock.home), "replay", str(journal))
        done = subprocess.run([sys.executable, "-m", "local_runner", *words],
                              capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    (difference, count) = done.stdout.splitlines()
    assert "user_provided_suffix: 'other' is now 'mine'" in difference
    assert count.endswith(", 0 left out, 1 differ")
