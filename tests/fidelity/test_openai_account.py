"""OpenAI's doors beside the others: what Azure ML shows of them, the account, keys, names, and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from local_runner.mock_server.credentials import ensure
from local_runner.mock_server.names import Names
from maas_client.spec.rundir import read_json
from tests.mocking import mock_command, running_mock
from tests.openai_clients import HELLO, MODEL, VERSION, Doors, ended, rows, tuned, wait
from tests.wire import ROWS, control, job_body, line_to, place_of, put_rows, token, wait_for


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    options = ("--engine", "simulate", "--simulate-seconds", "0.2", "--capacity", "2")
    with running_mock(tmp_path_factory.mktemp("mock"), *options) as mock:
        yield Doors(mock)


def test_azure_ml_shows_the_job_and_registers_its_model(doors: Doors) -> None:
    with doors.openai() as client, line_to(doors.mock) as arm:
        job = tuned(client, metadata={"team": "taps"})
        listed = arm.get(f"{place_of(doors.mock)}/jobs").json()["value"]
        found = next(one["properties"] for one in listed if one["name"] == job.id)
        assert (found["jobType"], found["status"]) == ("FineTuning", "Completed")
        assert found["tags"] == {"team": "taps"}
        model = found["outputs"]["registered_model"]["assetName"]
        versions = arm.get(f"{place_of(doors.mock)}/models/{model}/versions").json()["value"]
        assert [one["name"] for one in versions] == ["1"]


def test_a_model_of_azure_ml_answers_here_but_its_job_is_not_one_of_these(doors: Doors) -> None:
    with doors.openai() as client, line_to(doors.mock) as arm:
        url = f"{place_of(doors.mock)}/jobs/from-azure-ml"
        body = job_body(put_rows(arm, doors.mock, ROWS), output="from-azure-ml")
        assert arm.put(url, json=body).status_code == 201
        assert wait_for(arm, url)["properties"]["status"] == "Completed"
        assert "from-azure-ml" not in [job.id for job in client.fine_tuning.jobs.list()]
        assert "from-azure-ml:1" in [model.id for model in client.models.list()]
        answer = client.chat.completions.create(model="from-azure-ml:1", messages=HELLO)
        assert "Phi-3-mini-4k-instruct was asked" in (answer.choices[0].message.content or "")


def test_a_deployed_model_stays_until_its_deployment_goes(doors: Doors) -> None:
    with doors.openai() as client, doors.arm() as arm:
        name = tuned(client).fine_tuned_model
        doors.deploy("held", name)
        listed = arm.get(f"{doors.account}/deployments").json()["value"]
        assert "held" in [one["name"] for one in listed]
        assert arm.post(f"{doors.account}/listKeys").json()["key1"] == doors.key
        with pytest.raises(openai.ConflictError):
            client.models.delete(name)
        assert arm.delete(f"{doors.account}/deployments/held").status_code == 200
        assert client.models.delete(name).deleted
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_a_token_opens_the_doors_as_the_key_does(doors: Doors) -> None:
    bearer = token(doors.mock)
    with doors.azure(api_key=None, azure_ad_token_provider=lambda: bearer) as client:
        assert client.models.list().data
    with doors.openai("/api/projects/mine/openai/v1", api_key=bearer) as client:
        assert client.models.list().data


def test_the_public_names_of_the_account_are_the_twins_own(doors: Doors) -> None:
    headers = {"api-key": doors.key, "host": "mock-foundry.services.ai.azure.com"}
    with doors.bare(**headers) as bare:
        path = "/api/projects/mine/openai/v1"
        assert bare.get(f"{path}/models").json()["object"] == "list"
        assert bare.get(f"{path}/nothing").json()["error"]["code"] == "NotFound"
        bare.headers["host"] = "other.openai.azure.com"
        assert bare.get("/openai/v1/models").status_code == 404
    names = Names("eastus2")
    assert names.owns("mock-foundry.openai.azure.com")
    assert "mock-foundry.openai.azure.com" in names.certified()


def test_the_printed_environment_is_all_that_a_program_needs(doors: Doors) -> None:
    program = (
        "from openai import OpenAI, AzureOpenAI\n"
        "print(len(OpenAI().models.list().data))\n"
        f"print(len(AzureOpenAI(api_version={VERSION!r}).models.list().data))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=doors.mock.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second != "0"


def test_no_key_stands_in_a_log(doors: Doors) -> None:
    with doors.bare(**{"api-key": doors.key}) as bare:
        bare.get("/v1/models", headers={"x-copy": doors.key}).raise_for_status()
        bare.get(f"/v1/files/{doors.key}")
    with doors.arm() as arm:
        arm.post(f"{doors.account}/listKeys").raise_for_status()
    for name in ("journal.jsonl", "server.log"):
        text = (doors.mock.home / name).read_text(errors="replace")
        assert doors.key not in text
    assert "/v1/models" in (doors.mock.home / "journal.jsonl").read_text()
    assert (doors.mock.home / "server.json").stat().st_mode & 0o077 == 0


def test_a_home_made_before_there_was_a_key_gets_one(tmp_path: Path) -> None:
    file = tmp_path / "secrets.json"
    before = read_json(file) if ensure(file) else {}
    old = {key: value for key, value in before.items() if key != "api_key"}
    file.write_text(json.dumps(old))
    made = ensure(file)
    assert {key: getattr(made, key) for key in old} == old
    assert made.api_key
    assert ensure(file) == made


def test_a_killed_server_goes_on_with_its_jobs(doors: Doors) -> None:
    """Files, jobs and deployments are in the store, and the paused stay paused."""
    with doors.openai() as client:
        jobs = client.fine_tuning.jobs
        file = client.files.create(file=("t.jsonl", rows()), purpose="fine-tune")
        with doors.stopped_clock():
            job = jobs.create(model=MODEL, training_file=file.id)
            wait(lambda: jobs.retrieve(job.id).status, lambda status: status == "running")
            jobs.pause(job.id)
            wait(lambda: jobs.retrieve(job.id).status, lambda status: status == "paused")
        os.kill(doors.pid, signal.SIGKILL)
        options = ("--engine", "simulate", "--simulate-seconds", "0.2", "--capacity", "2")
        mock_command(doors.mock.home, "serve", "--detach", *options)
        assert jobs.retrieve(job.id).status == "paused"
        jobs.resume(job.id)
        assert ended(client, job.id).status == "succeeded"
    with doors.bare(**control(doors.mock)) as door:
        assert door.get("/__mock__/status").json()["jobs"].get("Paused") is None
