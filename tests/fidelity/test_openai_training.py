"""A job of OpenAI's doors that really trains: it pauses, goes on, and each of its models answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from maas_client.spec.rundir import RunDir, file_digest
from tests.mocking import running_mock
from tests.openai_clients import HELLO, MODEL, Doors, ended, rows, wait


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    options = ("--engine", "train", "--base", "tiny")
    with running_mock(tmp_path_factory.mktemp("mock"), *options) as mock:
        yield Doors(mock)


@pytest.fixture(scope="module")
def client(doors: Doors) -> Iterator[openai.OpenAI]:
    with doors.openai() as client:
        yield client


@pytest.fixture(scope="module")
def job(client: openai.OpenAI) -> Any:
    """One that was paused after its first epoch, and resumed."""
    jobs = client.fine_tuning.jobs
    file = client.files.create(file=("t.jsonl", rows(answer="Left. " * 10)), purpose="fine-tune")
    held_out = client.files.create(file=("v.jsonl", rows(4)), purpose="fine-tune")
    made = jobs.create(
        model=MODEL,
        training_file=file.id,
        validation_file=held_out.id,
        seed=3,
        hyperparameters={"n_epochs": 16, "learning_rate_multiplier": 5},
    )
    wait(lambda: list(jobs.checkpoints.list(made.id)), bool)
    jobs.pause(made.id)
    wait(lambda: jobs.retrieve(made.id).status, lambda status: status == "paused")
    (kept, *_) = jobs.checkpoints.list(made.id)
    assert kept.step_number < 192, "it was paused too late to say anything"
    answer = client.chat.completions.create(
        model=kept.fine_tuned_model_checkpoint, messages=HELLO, max_tokens=4
    )
    assert answer.usage is not None
    jobs.resume(made.id)
    return ended(client, made.id)


def ask(client: openai.OpenAI, model: str, **more: Any) -> Any:
    given = {"model": model, "messages": HELLO, "max_tokens": 12, "temperature": 0} | more
    return client.chat.completions.create(**given)


def test_it_learns_measures_and_counts(client: openai.OpenAI, job: Any) -> None:
    assert job.status == "succeeded", job.error
    events = [event.data for event in client.fine_tuning.jobs.list_events(job.id, limit=1000)]
    steps: list[Any] = [data for data in events if data and "train_loss" in data]  # type: ignore[operator]
    assert [data["step"] for data in steps] == list(range(192, 0, -1))
    assert steps[0]["train_loss"] < steps[-1]["train_loss"]
    assert steps[0]["train_mean_token_accuracy"] > steps[-1]["train_mean_token_accuracy"]
    assert job.trained_tokens > 16 * 12 * 10
    last = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
    assert last.metrics.valid_loss == last.metrics.full_valid_loss
    assert last.metrics.valid_mean_token_accuracy is not None


def test_the_last_checkpoint_is_the_model_and_the_others_are_not(
    client: openai.OpenAI, job: Any, doors: Doors
) -> None:
    run = RunDir(Path(doors.mock.home) / "runs" / job.id)
    assert run.epochs() == [14, 15, 16]
    weights = [file_digest(run.epoch(n) / "adapter_model.safetensors") for n in run.epochs()]
    assert weights[2] == file_digest(run.adapter / "adapter_model.safetensors")
    assert len(set(weights)) == 3
    final = ask(client, job.fine_tuned_model).choices[0].message.content
    kept = [
        one.fine_tuned_model_checkpoint for one in client.fine_tuning.jobs.checkpoints.list(job.id)
    ]
    said = [ask(client, name).choices[0].message.content for name in kept]
    assert said[0] == final
    assert all(isinstance(words, str) for words in said)
    assert ask(client, MODEL).choices[0].message.content != final


def test_seed_stop_and_limits_change_the_answer(client: openai.OpenAI, job: Any) -> None:
    name = job.fine_tuned_model
    hot = {"temperature": 2, "seed": 11}
    first, again = (ask(client, name, **hot).choices[0].message.content for _ in range(2))
    assert first == again
    assert ask(client, name, **(hot | {"seed": 12})).choices[0].message.content != first
    several = ask(client, name, **hot, n=3)
    texts = [choice.message.content for choice in several.choices]
    assert texts[0] == first
    assert len(set(texts)) == 3
    parts = ["", "", ""]  # made side by side, and the same again
    for chunk in ask(client, name, **hot, n=3, stream=True):
        parts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert parts == texts
    assert ask(client, name, **hot, top_p=0.0001).choices[0].message.content == (
        ask(client, name).choices[0].message.content
    )
    short = ask(client, name, max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    word = first[len(first) // 2]
    cut = ask(client, name, **hot, stop=word).choices[0].message.content
    assert cut == first.partition(word)[0]
    streamed = ask(client, name, **hot, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == first
