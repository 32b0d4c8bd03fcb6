"""OpenAI's doors under the unmodified SDKs: files, jobs, checkpoints, models, chat; and the other door."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from azure.ai.inference.models import UserMessage

from tests.mocking import running_mock
from tests.openai_clients import HELLO, MODEL, VERSION, Doors, ended, rows, tuned, wait
from tests.wire import line_to, place_of

SIMULATED = "[SIMULATED] No model answered. Phi-4-mini-instruct was asked."
CLIENTS = ("openai", "foundry", "azure")


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    options = ("--engine", "simulate", "--simulate-seconds", "0.2", "--capacity", "2")
    with running_mock(tmp_path_factory.mktemp("mock"), *options) as mock:
        yield Doors(mock)


def client_of(doors: Doors, kind: str) -> openai.OpenAI:
    if kind == "azure":
        return doors.azure()
    return doors.openai("/openai/v1" if kind == "foundry" else "/v1")


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_file_becomes_a_model_that_answers(doors: Doors, kind: str) -> None:
    with client_of(doors, kind) as client:
        file = client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
        assert (file.status, file.bytes, file.filename) == ("processed", len(rows()), "train.jsonl")
        held_out = client.files.create(file=("held.jsonl", rows(3)), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="Phi-4-mini-instruct-2025-02-01",
            training_file=file.id,
            validation_file=held_out.id,
            suffix="taps",
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        )
        assert job.status in ("validating_files", "queued", "running")
        assert job.fine_tuned_model is None
        job = ended(client, job.id)
        assert (job.status, job.seed, job.hyperparameters.n_epochs) == ("succeeded", 7, 2)
        assert job.hyperparameters.batch_size == 1  # no longer "auto"
        assert job.trained_tokens
        name = job.fine_tuned_model
        assert name.startswith("ft:phi-4-mini-instruct-2025-02-01:mock:taps:")
        assert name in [model.id for model in client.models.list()]
        asked = name
        if kind != "openai":
            with pytest.raises(openai.NotFoundError) as refused:
                client.chat.completions.create(model=name, messages=HELLO)
            assert refused.value.code == "DeploymentNotFound"
            asked = f"taps-{kind}"
            doors.deploy(asked, name)
        answer = client.chat.completions.create(model=asked, messages=HELLO)
        assert answer.choices[0].message.content == SIMULATED
        assert client.files.content(file.id).read() == rows()


def test_the_async_clients_do_the_same(doors: Doors) -> None:
    async def walk(client: openai.AsyncOpenAI, deployment: str) -> str:
        async with client:
            file = await client.files.create(file=("t.jsonl", rows()), purpose="fine-tune")
            job = await client.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
            found = [one.id async for one in client.fine_tuning.jobs.list()]
            assert job.id in found
            await client.fine_tuning.jobs.cancel(job.id)
            stream = await client.chat.completions.create(
                model=deployment, messages=HELLO, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    doors.deploy("plain", "Phi-4-mini-instruct")
    for client in (doors.async_openai(), doors.async_azure()):
        assert asyncio.run(walk(client, "plain")) == SIMULATED


def test_azure_ai_inference_asks_deployments_whole_and_streamed(doors: Doors) -> None:
    doors.deploy("plain", "Phi-4-mini-instruct")
    for path, more in (("/openai/deployments/plain", {}), ("/models", {"model": "plain"})):
        with doors.inference(path, **more) as client:
            whole = client.complete(messages=[UserMessage("hi")])
            assert whole.choices[0].message.content == SIMULATED
            pieces = client.complete(messages=[UserMessage("hi")], stream=True)
            words = [part.choices[0].delta.content or "" for part in pieces if part.choices]
            assert "".join(words) == SIMULATED
    with doors.inference("/models") as client:
        assert client.get_model_info().model_type == "chat-completion"


def test_several_answers_a_stream_and_its_usage(doors: Doors) -> None:
    with doors.openai() as client:
        whole = client.chat.completions.create(
            model=MODEL, messages=HELLO, n=3, max_tokens=2, seed=1, temperature=0.5, top_p=0.9
        )
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        assert {choice.finish_reason for choice in whole.choices} == {"length"}
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 6
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + 6
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=HELLO,
                n=2,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 18)  # type: ignore[union-attr]
    with doors.bare(Authorization=f"Bearer {doors.key}") as bare:
        body = {"model": MODEL, "messages": HELLO, "stream": True}
        text = bare.post("/v1/chat/completions", json=body).text
    assert text.endswith("data: [DONE]\n\n")


def test_events_come_newest_first_and_in_pages(doors: Doors) -> None:
    with doors.openai() as client:
        job = tuned(client)
        whole = client.fine_tuning.jobs.list_events(job.id, limit=1000).data
        paged = list(client.fine_tuning.jobs.list_events(job.id, limit=7))
    assert [event.id for event in paged] == [event.id for event in whole]
    assert len({event.id for event in whole}) == len(whole) > 20
    times = [event.created_at for event in whole]
    assert times == sorted(times, reverse=True)
    assert whole[0].message == "The job has successfully completed"
    assert whole[-1].message == f"Created fine-tuning job: {job.id}"
    numbers: Any = next(event.data for event in whole if event.type == "metrics")
    assert {"step", "total_steps", "train_loss", "train_mean_token_accuracy"} <= set(numbers)


def test_the_last_three_checkpoints_stay_and_each_answers(doors: Doors) -> None:
    with doors.openai() as client:
        job = tuned(client, hyperparameters={"n_epochs": 5})
        kept = list(client.fine_tuning.jobs.checkpoints.list(job.id))
        assert [one.step_number for one in kept] == [60, 48, 36]
        assert all(one.metrics.train_loss for one in kept)
        for one in kept:
            name = one.fine_tuned_model_checkpoint
            answer = client.chat.completions.create(model=name, messages=HELLO)
            assert (answer.model, answer.choices[0].message.content) == (name, SIMULATED)
        gone = f"{job.fine_tuned_model}:ckpt-step-12"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=gone, messages=HELLO)


def test_the_result_file_has_a_line_for_each_step_that_was_measured(doors: Doors) -> None:
    with doors.openai() as client:
        job = tuned(client)
        file = client.files.retrieve(job.result_files[0])
        assert file.purpose == "fine-tune-results"
        lines = list(csv.DictReader(io.StringIO(client.files.content(file.id).text)))
    assert lines[-1]["step"] == "36"
    assert float(lines[0]["train_loss"]) > float(lines[-1]["train_loss"]) > 0
    assert list(lines[0]) == [
        "step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy",
    ]  # fmt: skip


def test_a_job_pauses_keeps_what_it_has_and_goes_on(doors: Doors) -> None:
    with doors.openai() as client, line_to(doors.mock) as arm:
        jobs = client.fine_tuning.jobs
        file = client.files.create(file=("t.jsonl", rows()), purpose="fine-tune")
        with doors.stopped_clock():
            job = jobs.create(model=MODEL, training_file=file.id)
            wait(lambda: jobs.retrieve(job.id).status, lambda status: status == "running")
            assert jobs.pause(job.id).status in ("pausing", "paused")
            wait(lambda: jobs.retrieve(job.id).status, lambda status: status == "paused")
            seen = arm.get(f"{place_of(doors.mock)}/jobs/{job.id}").json()
            assert seen["properties"]["status"] == "Paused"
            assert jobs.pause(job.id).status == "paused"
        assert jobs.retrieve(job.id).status == "paused"  # though time goes on
        assert jobs.resume(job.id).status in ("resuming", "running")
        assert ended(client, job.id).status == "succeeded"
        said = [event.message for event in jobs.list_events(job.id)]
        metrics = [words for words in said if "training loss" in words]
        assert len(metrics) == len(set(metrics)) == 20
        assert "Fine-tuning job paused" in said


def test_a_job_is_cancelled_when_the_answer_comes_paused_or_not(doors: Doors) -> None:
    with doors.openai() as client, doors.stopped_clock(), line_to(doors.mock) as arm:
        jobs = client.fine_tuning.jobs
        file = client.files.create(file=("t.jsonl", rows()), purpose="fine-tune")
        for paused in (False, True):
            job = jobs.create(model=MODEL, training_file=file.id)
            wait(lambda job=job: jobs.retrieve(job.id).status, lambda status: status == "running")  # type: ignore[misc]
            if paused:
                jobs.pause(job.id)
                wait(lambda job=job: jobs.retrieve(job.id).status, lambda one: one == "paused")  # type: ignore[misc]
            assert jobs.cancel(job.id).status == "cancelled"
            seen = arm.get(f"{place_of(doors.mock)}/jobs/{job.id}").json()
            assert seen["properties"]["status"] == "Canceled"
            with pytest.raises(openai.BadRequestError, match="is cancelled"):
                jobs.resume(job.id)


def test_too_few_examples_fail_the_job_with_the_reason(doors: Doors) -> None:
    with doors.openai() as client:
        job = tuned(client, content=rows(9))
    assert job.status == "failed"
    assert (job.error.code, job.error.param) == ("invalid_n_examples", "training_file")
    assert "9 example(s), but must have at least 10" in job.error.message


def test_the_same_request_twice_makes_two_jobs_which_their_metadata_finds(doors: Doors) -> None:
    with doors.openai() as client:
        jobs = client.fine_tuning.jobs
        file = client.files.create(file=("twice.jsonl", rows()), purpose="fine-tune")
        mark = {"maas": "k-1"}
        made = {
            jobs.create(model=MODEL, training_file=file.id, metadata=mark | {"n": n}).id
            for n in ("1", "2")
        }
        assert len(made) == 2
        assert {job.id for job in jobs.list(metadata=mark)} == made
        assert len(list(jobs.list(metadata=mark | {"n": "2"}))) == 1
        assert list(jobs.list(metadata={"maas": "k-2"})) == []
        other = jobs.create(model=MODEL, training_file=file.id)
        unmarked = [job.id for job in jobs.list(extra_query={"metadata": "null"})]
        assert other.id in unmarked
        assert not made & set(unmarked)
        same = [(one.filename, one.bytes) for one in client.files.list(purpose="fine-tune")]
        assert ("twice.jsonl", len(rows())) in same
        for job in (*made, other.id):
            jobs.cancel(job)


def test_files_are_checked_as_the_client_checks_them(doors: Doors) -> None:
    with doors.openai() as client:

        def sent(content: bytes) -> Any:
            return client.files.create(file=("x.jsonl", content), purpose="fine-tune")

        assert sent(b"\xef\xbb\xbf" + rows()).status == "processed"
        garbage = sent(rows() + b"{\n")
        assert garbage.status == "error"
        assert "line 13" in garbage.status_details
        stranger = sent(rows().replace(b'"user"', b'"stranger"', 1))
        assert "stranger" in stranger.status_details
        weight = b'"assistant", "weight": 2'
        assert sent(rows().replace(b'"assistant"', weight, 1)).status == "error"
        assert client.files.delete(garbage.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(garbage.id)


def test_a_large_file_passes_through_and_is_not_held(doors: Doors) -> None:
    def highest() -> int:
        status = Path(f"/proc/{doors.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    with doors.openai() as client:
        client.files.create(file=("small.jsonl", rows()), purpose="fine-tune")
        before = highest()
        big = b"x" * (80 * 1024 * 1024)
        client.files.create(file=("big.jsonl", big), purpose="fine-tune")
    assert highest() - before < 48 * 1024


def test_a_file_in_parts_is_put_together_in_their_order(doors: Doors, tmp_path: Path) -> None:
    whole = tmp_path / "parts.jsonl"
    whole.write_bytes(rows(40))
    with doors.openai() as client:
        done = client.uploads.upload_file_chunked(
            file=whole, mime_type="application/jsonl", purpose="fine-tune", part_size=700
        )
        assert (done.status, done.file.status) == ("completed", "processed")  # type: ignore[union-attr]
        assert client.files.content(done.file.id).read() == rows(40)  # type: ignore[union-attr]
        begun = client.uploads.create(
            bytes=4, filename="x.jsonl", mime_type="application/jsonl", purpose="fine-tune"
        )
        part = client.uploads.parts.create(begun.id, data=b"abcd")
        with pytest.raises(openai.BadRequestError) as refused:
            client.uploads.complete(begun.id, part_ids=[part.id], md5="0" * 32)
        assert refused.value.code == "md5_mismatch"
        with pytest.raises(openai.BadRequestError) as refused:
            client.uploads.complete(begun.id, part_ids=[part.id, part.id])
        assert refused.value.code == "upload_size_mismatch"
        assert client.uploads.cancel(begun.id).status == "cancelled"
        late = client.uploads.create(
            bytes=4, filename="x.jsonl", mime_type="application/jsonl", purpose="fine-tune"
        )
        doors.advance(3601)
        with pytest.raises(openai.BadRequestError) as refused:
            client.uploads.parts.create(late.id, data=b"abcd")
        assert refused.value.code == "upload_expired"


def test_azure_sends_null_where_openai_sends_nothing(doors: Doors) -> None:
    with doors.openai() as client, doors.bare(**{"api-key": doors.key}) as bare:
        job = tuned(client)
        theirs = bare.get(f"/v1/fine_tuning/jobs/{job.id}").json()
        azures = bare.get(f"/openai/fine_tuning/jobs/{job.id}?api-version={VERSION}").json()
    for key in ("estimated_finish", "integrations", "error", "validation_file"):
        assert key not in theirs
        assert azures[key] is None
    assert azures["metadata"] == theirs["metadata"]
    assert azures["metadata"]["mock_simulated"] == "true"  # the twin's own, once it has begun
