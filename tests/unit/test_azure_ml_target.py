"""The verbs of the Azure ML target, with a fake worker: no azure, no network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from maas_client.errors import (
    ConflictError,
    NotFoundError,
    TargetError,
    UnreachableError,
)
from maas_client.flow import plan_job
from maas_client.jobs import Event, JobStatus
from maas_client.spec.loading import load_job, parse_job
from maas_client.spec.rundir import RunDir, read_json
from maas_client.targets.azure_ml import AzureMLTarget
from maas_client.targets.azure_ml.worker import no_outsiders
from tests.fake_azure import LINES, MOCK, RAW, Answer, FakeChild, target

# --- verbs --------------------------------------------------------------------------------------


def test_limits_ask_no_network_and_only_warn_of_retirement(job_folder: Path) -> None:
    limits = target().limits(load_job(job_folder / "job.yaml"))
    assert limits.region == "eastus2"
    assert limits.hosts
    assert not limits.refusals
    assert "retired" in limits.warnings[0]


def test_a_submission_names_its_rows_by_absolute_path(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job_folder)
    text = (job_folder / "job.yaml").read_text() + "validation_data: file:./train.jsonl\n"
    (job_folder / "job.yaml").write_text(text)
    child = FakeChild(submit={**RAW, "status": "Running"})
    place = AzureMLTarget(MOCK, child=child)
    job = place.submit(plan_job("job.yaml", place, name="job-1"))
    assert job.status is JobStatus.RUNNING
    sent = parse_job(child.asked[0][1]["job"])
    assert sent.name == "job-1"
    assert sent.training_data.path == str(job_folder / "train.jsonl")
    assert sent.validation_data
    assert sent.validation_data.path == str(job_folder / "train.jsonl")


def test_a_job_without_a_name_is_not_sent(job_folder: Path) -> None:
    place = target()
    with pytest.raises(TargetError, match="no name"):
        place.submit(plan_job(job_folder / "job.yaml", place))


def test_a_taken_name_says_how_to_go_on(job_folder: Path) -> None:
    place = target(submit=ConflictError("A job with the name job-1 exists.", hint="x"))
    with pytest.raises(ConflictError) as caught:
        place.submit(plan_job(job_folder / "job.yaml", place, name="job-1"))
    assert "--name" in caught.value.hint


def test_cancelling_an_ended_job_changes_nothing() -> None:
    target(get=RAW).cancel("job-1")  # the worker has no verb `cancel` here


ENDPOINT = {
    "name": "ep",
    "state": "succeeded",
    "model_id": "azureml://locations/r/workspaces/g/models/my-model/versions/1",
    "scoring_uri": "https://host/ep/",
    "created_at": None,
    "region": "eastus2",
}


def test_deploying_returns_an_endpoint_that_is_online() -> None:
    place = target(endpoint=NotFoundError("none"), deploy=ENDPOINT)
    found = place.deploy("my-model", endpoint="ep")
    assert (found.state, found.model, found.scoring_uri) == (
        "online",
        "my-model:1",
        "https://host/ep",
    )


@pytest.mark.parametrize("model", ["other", "other:1", "my-model:2", "my"])
def test_an_endpoint_that_serves_another_model_is_not_taken_over(model: str) -> None:
    place = target(endpoint=ENDPOINT)
    with pytest.raises(ConflictError, match="already serves my-model:1"):
        place.deploy(model, endpoint="ep")


@pytest.mark.parametrize("model", ["my-model", "my-model:1"])
def test_deploying_what_is_deployed_is_fine(model: str) -> None:
    assert target(endpoint=ENDPOINT, deploy=ENDPOINT).deploy(model, endpoint="ep").name == "ep"


def test_an_endpoint_that_failed_says_that_it_may_cost() -> None:
    place = target(endpoint=NotFoundError("none"), deploy={**ENDPOINT, "state": "failed"})
    with pytest.raises(TargetError, match="is failed") as caught:
        place.deploy("my-model", endpoint="ep")
    assert "undeploy" in caught.value.hint


# --- download -----------------------------------------------------------------------------------


def parcel(records: bool = True, model: str = "data/model", **raw: Any) -> Answer:  # noqa: FBT001, FBT002
    """What the worker brings: artifacts and a model folder."""

    def download(name: str, folder: str) -> Any:
        place = Path(folder)
        logs, outputs = place / "artifacts/user_logs", place / "artifacts/outputs"
        logs.mkdir(parents=True)
        outputs.mkdir()
        (logs / "std_log.txt").write_text("\n".join(LINES) + "\n")
        if records:
            (outputs / "plan.json").write_text('{"target": "mock"}')
            (outputs / "manifest.json").write_text('{"simulated": true, "base": null}')
            (outputs / "events.jsonl").write_text('{"seq": 1}\n')
            (outputs / "metrics.jsonl").write_text('{"step": 1}\n')
        adapter = place / "model" / model
        adapter.mkdir(parents=True)
        (place / "model/MLmodel").write_text("x")
        (adapter / "adapter_config.json").write_text("{}")
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
        return {
            "job": {**RAW, "name": name},
            "yaml": "type: finetuning\n",
            "artifacts": str(place / "artifacts"),
            "model": str(place / "model"),
            **raw,
        }

    return download


@pytest.mark.parametrize("model", ["data/model", ".", "model/artifacts/x"])
def test_a_download_has_the_shape_of_a_run_directory(tmp_path: Path, model: str) -> None:
    run = target(get=RAW, download=parcel(model=model)).download("job-1", tmp_path / "run")
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert run.log_file.read_text().splitlines() == LINES
    assert run.plan_file.exists()
    assert run.job_file.read_text() == "type: finetuning\n"
    assert run.metrics() == [{"step": 1}]
    status = run.read_status()
    assert status
    assert (status.status, status.simulated) == (JobStatus.SUCCEEDED, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_without_records_events_and_metrics_are_read_from_the_log(tmp_path: Path) -> None:
    run = target(get=RAW, download=parcel(records=False)).download("job-1", tmp_path / "run")
    events: list[Event] = list(run.events())
    assert [event.kind for event in events] == ["status", "log", "metric", "log", "status"]
    assert [line["loss"] for line in run.metrics()] == [1.0]


def test_a_failed_job_downloads_its_log_and_its_reason(tmp_path: Path) -> None:
    raw = {**RAW, "status": "Failed", "error": {"error": {"message": "No."}}}
    place = target(get=raw, download=parcel(records=False, job=raw, model="m"))
    status = place.download("job-1", tmp_path / "run").read_status()
    assert status
    assert (status.status, status.error) == (JobStatus.FAILED, "No.")


def test_a_job_that_goes_on_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="only an ended job"):
        target(get={**RAW, "status": "Running"}).download("job-1", tmp_path / "run")


def test_a_download_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    def broken(name: str, folder: str) -> Any:
        parcel()(name, folder)
        raise UnreachableError("gone")

    with pytest.raises(UnreachableError):
        target(get=RAW, download=broken).download("job-1", tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_the_same_job_may_be_downloaded_again_and_nothing_else_is_overwritten(
    tmp_path: Path,
) -> None:
    place = target(get=RAW, download=parcel())
    run = place.download("job-1", tmp_path / "run")
    (run.path / "mine.txt").write_text("x")
    again = place.download("job-1", tmp_path / "run")
    assert read_json(again.origin_file)["job"] == "job-1"
    with pytest.raises(TargetError, match="not an earlier download of job job-2"):
        place.download("job-2", tmp_path / "run")
    foreign = RunDir(tmp_path / "local")
    foreign.path.mkdir()
    foreign.plan_file.write_text("{}")
    with pytest.raises(TargetError, match="not empty"):
        place.download("job-1", foreign.path)
    assert foreign.plan_file.exists()


def test_an_empty_directory_may_be_downloaded_into(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    target(get=RAW, download=parcel()).download("job-1", tmp_path / "run")


def test_a_model_folder_without_a_model_is_no_success(tmp_path: Path) -> None:
    def empty(name: str, folder: str) -> Any:
        answer = parcel()(name, folder)
        (Path(folder) / "model/data/model/adapter_config.json").unlink()
        return answer

    with pytest.raises(TargetError, match="neither an adapter nor a model"):
        target(get=RAW, download=empty).download("job-1", tmp_path / "run")


def test_blobs_that_would_land_outside_refuse_the_download() -> None:
    logger = logging.getLogger("azure.ai.ml._artifacts._blob_storage_helper")

    def skips() -> None:
        with no_outsiders():
            logger.warning("Skipping blob '%s': resolved path is outside the destination", "../x")

    with pytest.raises(ValueError, match=r"\.\./x"):
        skips()
    with no_outsiders():
        logger.warning("something else")
