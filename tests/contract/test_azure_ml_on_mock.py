"""The Azure ML target through the real azure-ai-ml against the mock server, verb by verb."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maas_client import flow
from maas_client.errors import (
    AuthError,
    ConflictError,
    NotFoundError,
    TargetError,
    UnreachableError,
)
from maas_client.handle import JobHandle
from maas_client.jobs import JobStatus
from maas_client.spec.loading import load_job
from maas_client.targets.azure_ml import AzureMLTarget
from tests.conftest import JOB, ROW
from tests.live import test_live
from tests.mocking import Mock, running_mock

SIMULATED = ("--engine", "simulate")
LONG = JOB.replace("hyperparameters:", 'hyperparameters:\n  num_train_epochs: "20"')
"""With `--simulate-seconds 60`, a job that takes a minute and looks up every three seconds."""


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    """A mock whose jobs take a moment, so that they can be followed."""
    home = tmp_path_factory.mktemp("mock")
    with running_mock(home, *SIMULATED, "--simulate-seconds", "2", "--capacity", "4") as running:
        yield running


@pytest.fixture(scope="module")
def place(mock: Mock) -> Iterator[AzureMLTarget]:
    made = AzureMLTarget(mock.settings)
    yield made
    made.close()


@pytest.fixture(scope="module")
def done(place: AzureMLTarget, tmp_path_factory: pytest.TempPathFactory) -> JobHandle:
    """A job that was followed to its end."""
    handle = _submit(place, tmp_path_factory.mktemp("job"), "done")
    for _ in handle.follow():
        pass
    return handle


def _folder(folder: Path, *, text: str = JOB) -> Path:
    (folder / "job.yaml").write_text(text)
    rows = [ROW.replace("tap", word) for word in ("tap", "door", "lamp")]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "job.yaml"


def _submit(place: AzureMLTarget, folder: Path, name: str, *, text: str = JOB) -> JobHandle:
    return flow.submit(flow.plan_job(_folder(folder, text=text), place, name=name), place)


def _wait(until: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while not (found := until()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def test_a_job_is_followed_from_the_first_line_to_the_last(
    place: AzureMLTarget, tmp_path: Path
) -> None:
    handle = _submit(place, tmp_path, "followed")
    events = list(handle.follow())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].data == {"status": "running"}
    assert events[-1].data == {"status": "succeeded"}
    losses = [event.data["loss"] for event in events if "loss" in event.data]
    assert losses == sorted(losses, reverse=True)
    assert not [e for e in events if "RunId" in e.message or "Web View" in e.message]
    job = handle.get()
    assert job.status is JobStatus.SUCCEEDED
    assert job.output_model
    assert job.simulated
    assert "SIMULATED" in job.base


def test_the_same_plan_twice_is_one_job(place: AzureMLTarget, tmp_path: Path) -> None:
    plan = flow.plan_job(_folder(tmp_path), place, name="twice")
    assert place.submit(plan).id == place.submit(plan).id == "twice"
    assert [job.id for job in place.list()].count("twice") == 1


def test_the_same_plan_twice_is_one_job_though_the_git_checkout_changed(
    mock: Mock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    subprocess.run(["git", "init", "-q", "."], cwd=checkout, check=True)
    monkeypatch.chdir(checkout)
    place = AzureMLTarget(mock.settings)
    plan = flow.plan_job(_folder(checkout), place, name="git")
    place.submit(plan)
    (checkout / "new.txt").write_text("the tree is dirty now")
    place.submit(plan)
    place.close()


def test_a_name_taken_by_another_job_is_a_conflict(place: AzureMLTarget, tmp_path: Path) -> None:
    _submit(place, tmp_path, "taken")
    with pytest.raises(ConflictError) as caught:
        _submit(place, tmp_path, "taken", text=JOB.replace("0.00002", "0.00003"))
    assert caught.value.status == 409
    assert caught.value.request_id
    assert "--name" in caught.value.hint


def test_validation_rows_are_sent_or_left_out(place: AzureMLTarget, tmp_path: Path) -> None:
    text = JOB + "validation_data:\n  path: held-out.jsonl\n"
    (tmp_path / "held-out.jsonl").write_text(ROW.replace("tap", "cup") + "\n")
    handle = _submit(place, tmp_path, "validated", text=text)
    assert handle.wait().status is JobStatus.SUCCEEDED
    run = handle.download(tmp_path / "run")
    assert load_job(run.job_file).validation_data


def test_a_cancelled_job_has_stopped(tmp_path: Path) -> None:
    with running_mock(tmp_path / "m", *SIMULATED, "--simulate-seconds", "60") as slow:
        place = AzureMLTarget(slow.settings)
        handle = _submit(place, tmp_path, "stopped", text=LONG)
        _wait(lambda: any(event.kind == "metric" for event in place.events("stopped")))
        began = time.monotonic()
        handle.cancel()
        assert time.monotonic() - began < 20
        assert handle.get().status is JobStatus.CANCELLED
        assert list(place.events("stopped"))[-1].data == {"status": "cancelled"}
        handle.cancel()  # what has stopped stays as it is
        place.close()


def test_a_failed_job_says_why(tmp_path: Path) -> None:
    """Its engine is killed each time it starts; the mock gives up, and tells."""
    with running_mock(tmp_path / "m", *SIMULATED, "--simulate-seconds", "60") as slow:
        place = AzureMLTarget(slow.settings)
        handle = _submit(place, tmp_path, "failing", text=LONG)

        def failed() -> bool:
            _kill_engines(slow.home)
            return handle.get().status.is_terminal

        _wait(failed)
        job = handle.get()
        assert job.status is JobStatus.FAILED
        assert job.error
        assert "ended 5 times without a result" in job.error
        assert job.error in list(place.events("failing"))[-1].message
        status = handle.download(tmp_path / "run").read_status()
        assert status
        assert status.error == job.error
        place.close()


def _kill_engines(home: Path) -> None:
    runs = str(home / "runs").encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"simulate" in words and runs in words:
            os.kill(int(folder.name), signal.SIGKILL)


def test_a_download_is_a_run_directory(done: JobHandle, tmp_path: Path) -> None:
    run = done.download(tmp_path / "run")
    assert (run.adapter / "adapter_config.json").exists()
    assert (run.adapter / "adapter_model.safetensors").exists()
    assert load_job(run.job_file).model.asset_name == "Phi-3-mini-4k-instruct"
    assert run.metrics()
    assert run.log_file.read_text()
    status = run.read_status()
    assert status
    assert (status.status, status.simulated) == (JobStatus.SUCCEEDED, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_an_endpoint_or_a_model_that_is_not_there_is_not_found(place: AzureMLTarget) -> None:
    for ask in (
        lambda: place.endpoint("nothing"),
        lambda: place.keys("nothing"),
        lambda: place.undeploy("nothing"),
        lambda: place.deploy("nothing", endpoint="an-endpoint"),
    ):
        with pytest.raises(NotFoundError) as caught:
            ask()
        assert caught.value.status == 404


def test_what_the_service_refuses_comes_with_its_words_and_codes(
    place: AzureMLTarget, tmp_path: Path
) -> None:
    settings = replace(place._settings, region=None)
    blind = AzureMLTarget(settings, child=place._child)
    plan = flow.plan_job(_folder(tmp_path), blind, name="refused")
    gone = plan.job.model_copy(
        update={"training_data": plan.job.training_data.model_copy(update={"path": "azureml:no:1"})}
    )
    with pytest.raises(TargetError) as caught:
        blind.submit(replace(plan, job=gone))
    assert caught.value.code
    assert caught.value.request_id
    assert "Code:" not in caught.value.message


def test_a_model_is_deployed_asked_and_undeployed(
    mock: Mock, place: AzureMLTarget, done: JobHandle
) -> None:
    model = done.get().output_model
    assert model
    endpoint = place.deploy(model.partition(":")[0], endpoint="asked")
    assert endpoint.state == "online"
    assert endpoint.model.startswith("my-model:")
    assert place.deploy(endpoint.model, endpoint="asked").name == "asked"
    with pytest.raises(ConflictError):
        place.deploy("another", endpoint="asked")
    assert [found.name for found in place.endpoints()] == ["asked"]
    line = flow.open_chat("asked", place, mock.settings)
    assert line.ask([{"role": "user", "content": "Where is the tap?"}])
    line.close()
    assert len(set(place.keys("asked"))) == 2
    place.undeploy("asked")
    assert place.endpoints() == []


def test_a_jobs_model_may_be_put_out_of_sight(place: AzureMLTarget, tmp_path: Path) -> None:
    job = _submit(place, tmp_path, "archived").wait()
    place.archive(job)
    assert "archived" not in [found.id for found in place.list()]


def test_a_mock_in_order_passes_its_check(place: AzureMLTarget) -> None:
    findings = place.check()
    assert [finding for finding in findings if not finding.ok] == []
    assert {finding.name for finding in findings} >= {"login", "workspace", "role", "region"}


def test_the_check_names_a_workspace_that_is_not_there(mock: Mock) -> None:
    place = AzureMLTarget(replace(mock.settings, workspace="elsewhere"))
    last = place.check()[-1]
    place.close()
    assert (last.name, last.ok) == ("workspace", False)
    assert "elsewhere" in last.detail


def test_a_service_that_is_down_is_unreachable_and_says_how_to_start_it(mock: Mock) -> None:
    place = AzureMLTarget(replace(mock.settings, resource_manager="https://127.0.0.1:9"))
    with pytest.raises(UnreachableError, match="mock") as caught:
        place.list()
    assert "maas mock serve" in caught.value.hint
    assert place.check()[-1].name == "reachable"
    place.close()


def test_a_refused_login_is_told(mock: Mock) -> None:
    place = AzureMLTarget(replace(mock.settings, identity_header="not-that-one"))
    with pytest.raises(AuthError):
        place.list()
    last = place.check()[-1]
    place.close()
    assert (last.name, last.ok) == ("login", False)
    assert "not-that-one" not in last.detail
    assert "maas mock" in last.next_step


def test_two_mocks_and_the_callers_own_environment_live_side_by_side(
    place: AzureMLTarget, tmp_path: Path
) -> None:
    """azure-ai-ml remembers one cloud in a process; each target has its own process."""
    before = dict(os.environ)
    with running_mock(tmp_path / "m", *SIMULATED, "--region", "westus3") as second:
        other = AzureMLTarget(second.settings)
        regions = [
            next(f.detail for f in one.check() if f.name == "workspace").rpartition(", ")[2]
            for one in (place, other, place)
        ]
        other.close()
    assert regions == ["eastus2", "westus3", "eastus2"]
    assert {k: v for k, v in os.environ.items() if k != "MAAS_MOCK_HOME"} == {
        k: v for k, v in before.items() if k != "MAAS_MOCK_HOME"
    }
    assert "azure.ai.ml" not in sys.modules


def test_the_worker_ends_when_its_parent_is_killed(mock: Mock) -> None:
    code = (
        "import os, signal\n"
        "from maas_client import flow\n"
        "place = flow.open_target('mock')\n"
        "place.list()\n"
        "print(place._child._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"MAAS_MOCK_HOME": str(mock.home)}
    dead = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    worker = Path("/proc") / dead.stdout.strip()
    assert worker.name.isdigit(), dead.stderr
    _wait(lambda: not worker.exists())


def test_local_rows_that_vanished_are_not_sent(place: AzureMLTarget, tmp_path: Path) -> None:
    plan = flow.plan_job(_folder(tmp_path), place, name="vanished")
    shutil.rmtree(tmp_path)
    with pytest.raises(TargetError, match="no file"):
        place.submit(plan)


def test_what_make_live_does_is_rehearsed_here(
    mock: Mock, place: AzureMLTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAAS_MOCK_HOME", str(mock.home))
    test_live.test_a_model_is_tuned_served_asked_and_cleaned_up(place, tmp_path)
    assert place.endpoints() == []
    assert not [job for job in place.list() if job.id.startswith("maas-live")]
