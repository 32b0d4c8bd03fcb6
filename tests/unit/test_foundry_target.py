"""The verbs of the foundry target, on a service that lives in this process."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import stamina

from maas_client import flow
from maas_client.errors import (
    AmbiguousError,
    AuthError,
    ConflictError,
    MaasError,
    NotFoundError,
    SettingsError,
    TargetError,
)
from maas_client.jobs import JobStatus
from maas_client.plan import Plan
from maas_client.spec.loading import load_job
from maas_client.spec.rundir import file_digest, read_json
from maas_client.targets.base import CheckpointTarget, FileTarget, HostingTarget, PausableTarget
from maas_client.targets.foundry import FoundryTarget, deployments, parcel
from maas_client.transport import Transport
from tests.conftest import JOB, ROW
from tests.fake_openai import (
    ARM,
    CSV,
    FOUNDRY,
    KEY,
    FakeService,
    add_job,
    add_result,
    lose,
    planned,
    refusal,
)


@pytest.fixture(autouse=True)
def no_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    stamina.set_testing(True, attempts=4)
    yield
    stamina.set_testing(False)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def ready(tmp_path: Path) -> Plan:
    """A plan whose job has a name."""
    (tmp_path / "train.jsonl").write_text(f"{ROW}\n" * 10)
    (tmp_path / "job.yaml").write_text(JOB.replace("task:", "name: taps\ntask:"))
    return planned(tmp_path / "job.yaml", FakeService().target())


def silent(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("no answer", request=request)


def test_it_does_all_that_a_target_can() -> None:
    target = FakeService().target()
    kinds = (HostingTarget, PausableTarget, CheckpointTarget, FileTarget)
    assert all(isinstance(target, kind) for kind in kinds)


def test_a_job_is_submitted_with_its_rows(service: FakeService, ready: Plan) -> None:
    job = service.target().submit(ready)
    (body,) = service.bodies
    assert job.id == "ftjob-1"
    assert job.status is JobStatus.QUEUED
    assert job.display_name == "taps"
    assert service.content[body["training_file"]] == f"{ROW}\n".encode() * 10
    assert body["metadata"] == {"maas_name": "taps"}


def test_the_key_of_a_plan_finds_the_job_again(service: FakeService, ready: Plan) -> None:
    class Keyed:
        key = "a-key"

        def __getattr__(self, name: str) -> Any:
            return getattr(ready, name)

    target = service.target()
    for number in range(5):
        add_job(service, f"ftjob-x{number}")
    assert target.find("a-key") is None
    job = target.submit(Keyed())  # type: ignore[arg-type]
    for number in range(5):
        add_job(service, f"ftjob-y{number}")
    found = target.find("a-key")
    assert found is not None
    assert found.id == job.id


@pytest.mark.parametrize(
    "fault", [silent, lambda _: refusal(500, "boom"), lambda _: httpx.Response(200, text="<html>")]
)
def test_a_new_job_whose_answer_was_lost_is_never_asked_for_again(
    service: FakeService, ready: Plan, fault: Any
) -> None:
    service.faults.append(("POST /fine_tuning/jobs", fault))
    with pytest.raises(AmbiguousError, match="jobs list --target foundry"):
        service.target().submit(ready)
    assert service.count("POST /fine_tuning/jobs") == 1


def test_a_new_job_that_was_not_taken_is_asked_for_again(service: FakeService, ready: Plan) -> None:
    busy = lambda _: refusal(429, "slow down", **{"retry-after": "1"})  # noqa: E731 - as short as it is
    service.faults += [("POST /fine_tuning/jobs", busy)] * 2
    assert service.target().submit(ready).id == "ftjob-1"
    assert len(service.bodies) == 1


def test_a_line_that_was_never_there_is_not_ambiguous(service: FakeService, ready: Plan) -> None:
    def down(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    service.faults.append(("POST /fine_tuning/jobs", down))
    with pytest.raises(TargetError, match="refused") as caught:
        service.target().submit(ready)
    assert not isinstance(caught.value, AmbiguousError)


def test_lists_have_no_pages(service: FakeService) -> None:
    for number in range(7):
        add_job(service, f"ftjob-{number}")
        add_result(service, f"{number}.csv", CSV)
    target = service.target()
    assert [job.id for job in target.list(limit=5)] == [f"ftjob-{n}" for n in (6, 5, 4, 3, 2)]
    assert len(target.list()) == 7
    assert [file.name for file in target.files(limit=3)] == ["6.csv", "5.csv", "4.csv"]
    assert [kept.step for kept in target.checkpoints("ftjob-1")] == [1, 2, 3]
    assert target.checkpoints("ftjob-1")[2].metrics == {"loss": 2 / 3, "eval_loss": 1.0}


def test_a_service_that_turns_in_a_circle_is_noticed(service: FakeService) -> None:
    page = {"data": [{"id": "file-1"}], "has_more": True}
    service.faults += [("GET /files", lambda _: httpx.Response(200, json=page))] * 2
    with pytest.raises(TargetError, match="again and again"):
        service.target().files()


def events(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"ftevent-{number}",
            "created_at": 1000 + number,
            "level": "info",
            "message": f"Step {number}",
            "type": "metrics",
            "data": {"step": number, "total_steps": 9, "train_loss": 1.0, "valid_loss": None},
        }
        for number in range(1, count + 1)
    ]


def test_events_are_numbered_from_the_oldest(service: FakeService) -> None:
    add_job(service, "ftjob-1")
    target = service.target()
    service.events = events(3)
    assert [event.seq for event in target.events("ftjob-1")] == [1, 2, 3]
    service.events = events(5)
    fresh = list(target.events("ftjob-1", after=3))
    assert [(event.seq, event.message) for event in fresh] == [(4, "Step 4"), (5, "Step 5")]
    assert fresh[0].data == {"step": 4, "max_steps": 9, "loss": 1.0}
    assert fresh[0].kind == "metric"
    service.jobs["ftjob-1"] |= {"status": "failed", "error": {"code": "bad", "message": "rows"}}
    (last,) = target.events("ftjob-1", after=5)
    assert (last.kind, last.message) == ("status", "failed: bad: rows")
    assert [event.seq for event in service.target().events("ftjob-1")] == [1, 2, 3, 4, 5, 6]


def test_a_job_is_paused_resumed_and_cancelled(service: FakeService) -> None:
    add_job(service, "ftjob-1")
    target = service.target()
    assert target.pause("ftjob-1").status is JobStatus.PAUSED
    assert not target.get("ftjob-1").status.is_terminal
    assert target.resume("ftjob-1").status is JobStatus.QUEUED
    target.cancel("ftjob-1")
    assert target.get("ftjob-1").status is JobStatus.CANCELLED
    target.cancel("ftjob-1")
    assert service.count("cancel") == 1


def test_a_lost_answer_to_a_pause_is_made_good(service: FakeService) -> None:
    add_job(service, "ftjob-1")
    service.faults.append(("pause", lose(service)))
    assert service.target().pause("ftjob-1").status is JobStatus.PAUSED


def test_an_unknown_job_says_where_to_look(service: FakeService) -> None:
    with pytest.raises(NotFoundError, match="jobs list --target foundry") as caught:
        service.target().get("ftjob-9")
    assert caught.value.request_id == "req-1"


def ended(service: FakeService, ready: Plan, **more: Any) -> FoundryTarget:
    target = service.target()
    target.submit(ready)
    service.events = events(2)
    done = {"status": "succeeded", "finished_at": 2000, "fine_tuned_model": "ft:phi:o:s:1"}
    service.jobs["ftjob-1"] |= done | {"result_files": [add_result(service, "r.csv", CSV)]} | more
    return target


def test_a_job_is_downloaded_as_a_run(service: FakeService, ready: Plan, tmp_path: Path) -> None:
    run = ended(service, ready).download("ftjob-1", tmp_path / "run")
    job = load_job(run.job_file)
    assert job.training_data.local_path(run.path) == tmp_path / "train.jsonl"
    assert read_json(run.plan_file) == ready.to_json()
    status = run.read_status()
    assert status is not None
    assert (status.status, status.ended_at) == (JobStatus.SUCCEEDED, 2000)
    assert [event.kind for event in run.events()] == ["metric", "metric", "status"]
    assert run.metrics()[1] == {
        "at": 1002,
        "step": 2,
        "loss": 1.5,
        "token_accuracy": 0.6,
        "eval_loss": 1.75,
        "eval_token_accuracy": 0.5,
    }
    assert (run.path / "results.csv").read_bytes() == CSV
    kept = read_json(run.path / "checkpoints.json")["checkpoints"]
    assert [entry["step"] for entry in kept] == [1, 2, 3]
    outputs = read_json(run.manifest_file)["outputs"]
    assert set(outputs) == {
        str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()
    } - {"manifest.json"}
    assert all(file_digest(run.path / name) == digest for name, digest in outputs.items())


def test_a_job_of_another_machine_comes_with_a_job_file(
    service: FakeService, tmp_path: Path
) -> None:
    add_job(service, "ftjob-1", "cancelled", metadata={"maas_name": "theirs"})
    run = service.target().download("ftjob-1", tmp_path / "run")
    job = load_job(run.job_file)
    assert (job.name, job.model.asset_name) == ("theirs", "Phi-3-mini-4k-instruct")
    assert job.hyperparameters == {
        "num_train_epochs": "2",
        "per_device_train_batch_size": "1",
        "seed": "42",
    }
    assert not run.plan_file.exists()


def test_a_job_that_goes_on_and_a_folder_of_others_are_left_alone(
    service: FakeService, ready: Plan, tmp_path: Path
) -> None:
    target = ended(service, ready)
    with pytest.raises(TargetError, match="not empty"):
        target.download("ftjob-1", tmp_path)
    add_job(service, "ftjob-x")
    with pytest.raises(TargetError, match="only an ended job"):
        target.download("ftjob-x", tmp_path / "run")
    assert (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize("form", ["zip", "files"])
def test_an_adapter_that_is_offered_is_brought(
    service: FakeService, ready: Plan, tmp_path: Path, form: str
) -> None:
    parts = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    if form == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in parts.items():
                archive.writestr(f"deep/{name}", content)
        ids = [add_result(service, "adapter.zip", packed.getvalue())]
    else:
        ids = [add_result(service, name, content) for name, content in parts.items()]
    ids.append(add_result(service, "../../notes.txt", b"words"))
    run = ended(service, ready, result_files=ids).download("ftjob-1", tmp_path / "run")
    assert {file.name: file.read_bytes() for file in run.adapter.iterdir()} == parts
    assert (run.path / "results" / f"{len(ids) - 1}-notes.txt").read_bytes() == b"words"


def packed(kind: str, members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """An archive, a tar with symbolic links in it."""
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return made.getvalue()
    with tarfile.open(fileobj=made, mode="w:gz") as tape:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tape.addfile(entry, io.BytesIO(content))
        for name, to in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, to
            tape.addfile(entry)
    return made.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("bomb", ["bytes", "members"])
def test_an_archive_that_would_fill_the_disk_is_not_unpacked(
    service: FakeService,
    ready: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    bomb: str,
) -> None:
    monkeypatch.setattr(parcel, "_SMALL", 100_000)
    monkeypatch.setattr(parcel, "_MOST_MEMBERS", 50)
    many = {f"{number}.txt": b"" for number in range(60)}
    large = {"adapter_config.json": bytes(2_000_000)}
    content = packed(kind, large if bomb == "bytes" else many)
    ids = [add_result(service, f"adapter.{kind}", content)]
    target = ended(service, ready, result_files=ids)
    with pytest.raises(TargetError, match=r"is not taken: an archive of .* at most"):
        target.download("ftjob-1", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("adapter_config.json"))


def test_files_that_never_end_are_not_taken(
    service: FakeService, ready: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [add_result(service, f"{number}.bin", bytes(40_000)) for number in range(3)]
    target = ended(service, ready, result_files=ids)
    monkeypatch.setattr(parcel, "_MOST", 100_000)  # together
    with pytest.raises(TargetError, match=r"2\.bin .* is not taken"):
        target.download("ftjob-1", tmp_path / "run")
    monkeypatch.setattr(parcel, "_MOST_TABLE", 10)
    service.jobs["ftjob-1"]["result_files"] = [add_result(service, "results.csv", CSV)]
    with pytest.raises(TargetError, match="a result file may have at most 10"):
        target.download("ftjob-1", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_links_in_an_archive_are_left_out(
    service: FakeService, ready: Plan, tmp_path: Path
) -> None:
    members = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    content = packed("tar.gz", members, {"here": "adapter_config.json", "away": "/etc/passwd"})
    ids = [add_result(service, "adapter.tar.gz", content)]
    run = ended(service, ready, result_files=ids).download("ftjob-1", tmp_path / "run")
    assert {file.name for file in run.adapter.iterdir()} == set(members)


@pytest.mark.parametrize("name", ["..", "", "/", "../.."])
def test_a_name_of_the_service_is_never_a_way_out(
    service: FakeService, ready: Plan, tmp_path: Path, name: str
) -> None:
    ids = [add_result(service, name, b"words")]
    run = ended(service, ready, result_files=ids).download("ftjob-1", tmp_path / "run")
    assert [file.name for file in (run.path / "results").iterdir()] == ["0-file"]


def test_a_job_is_collected_into_a_folder_of_the_runs(
    service: FakeService, ready: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's id is the service's word, and no path."""
    monkeypatch.chdir(tmp_path)
    target = ended(service, ready)
    service.jobs["../../x"] = service.jobs["ftjob-1"] | {"id": "../../x"}
    monkeypatch.setattr(target, "_raw", lambda job: service.jobs[job])
    monkeypatch.setattr(target, "events", lambda _: iter(()))
    monkeypatch.setattr(target, "checkpoints", lambda _: ())
    run = flow.collect(flow.JobHandle(target, "../../x"))
    assert run.path.resolve() == tmp_path / "runs" / "x"


def test_an_answer_that_says_no_job_leaves_doubt_and_the_job_is_found(
    service: FakeService, ready: Plan
) -> None:
    def garbled(request: httpx.Request) -> httpx.Response:
        service.answer(request)
        service.asked.pop()
        return httpx.Response(200, json={"id": "ftjob-1", "status": "a new word"})

    service.faults.append(("POST /fine_tuning/jobs", garbled))
    target = service.target()
    handle = flow.submit(replace(ready, target=target.name), target)
    assert (handle.id, handle.found) == ("ftjob-1", False)
    assert list(service.jobs) == ["ftjob-1"]


def test_a_model_is_deployed_through_arm(service: FakeService) -> None:
    target = service.target(ARM)
    endpoint = flow.deploy("ft:phi:o:support:1", target)
    assert (endpoint.name, endpoint.state, endpoint.model) == (
        "support-1",
        "online",
        "ft:phi:o:support:1",
    )
    assert endpoint.scoring_uri == "https://team.openai.azure.com/openai"
    flow.deploy("ft:phi:o:other:2", target)
    assert [found.name for found in target.endpoints()] == ["other-2", "support-1"]  # two pages
    target.undeploy("support-1")
    with pytest.raises(NotFoundError):
        target.endpoint("support-1")
    with pytest.raises(NotFoundError):
        target.undeploy("support-1")


def test_each_model_gets_a_name_of_its_own_and_takes_nobodys_place(service: FakeService) -> None:
    target = service.target(ARM)
    models = (
        "ft:phi-3-mini:o:support:1a",
        "ft:phi-3-mini:o:support:1a:ckpt-step-12",
        "ft:phi-3-mini:o:support:2b",
        "ft:phi-3-mini:o::3c",
        "ft:phi-3-mini:o::4d",
        f"ft:{'x' * 90}:o::5e",
    )
    names = [flow.deploy(model, target).name for model in models]
    assert names[:5] == [
        "support-1a",
        "support-1a-ckpt-step-12",
        "support-2b",
        "phi-3-mini-3c",
        "phi-3-mini-4d",
    ]
    assert len(set(names)) == len(models)
    assert names[5].endswith("x-5e")
    assert len(names[5]) == 64
    for model in models:  # the same again is no conflict
        flow.deploy(model, target)
    with pytest.raises(
        ConflictError, match="already serves ft:phi-3-mini:o:support:1a, not"
    ) as told:
        flow.deploy(models[2], target, endpoint="support-1a")
    assert "--endpoint" in told.value.hint
    assert target.endpoint("support-1a").model == models[0]


def test_a_deployment_that_fails_says_how_to_end_the_bill(service: FakeService) -> None:
    failed = {"name": "s", "properties": {"provisioningState": "Failed"}}
    service.faults.append(("PUT", lambda _: httpx.Response(200, json=failed)))
    service.faults.append(("GET", lambda _: refusal(404, "no deployment s")))
    service.faults.append(("GET", lambda _: httpx.Response(200, json=failed)))
    with pytest.raises(TargetError, match="undeploy s --target foundry"):
        service.target(ARM).deploy("ft:m", endpoint="s")


def test_without_arm_a_model_answers_by_its_name(service: FakeService) -> None:
    target = service.target()
    assert flow.deploy("ft:phi:o:s:1", target).name == "ft:phi:o:s:1"
    assert [found.name for found in target.endpoints()] == ["ft:phi:o:s:1"]
    assert target.keys("ft:phi:o:s:1") == (KEY, "")
    with pytest.raises(TargetError, match="nothing is deployed"):
        target.undeploy("ft:phi:o:s:1")


def test_files_are_deleted_and_forgotten(service: FakeService, ready: Plan, tmp_path: Path) -> None:
    target = service.target()
    stored = target.upload_file(Path(ready.training.path))
    service.faults.append(("DELETE", lose(service)))
    target.delete_file(stored.id)
    assert not service.files
    with pytest.raises(NotFoundError):
        target.delete_file(stored.id)
    assert not list((tmp_path / "home" / "uploads").glob("*.json"))


def test_a_target_without_a_key_plans_and_says_what_is_missing(
    ready: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    target = FoundryTarget(replace(FOUNDRY, api_key=None, api_key_env="MY_KEY"))
    assert target.limits(ready.job).min_rows == 10
    with pytest.raises(SettingsError, match="MY_KEY"):
        target.list()
    (finding,) = target.check()
    assert not finding.ok
    assert "MY_KEY" in finding.next_step


def test_check_says_what_answers(service: FakeService) -> None:
    findings = service.target(ARM).check()
    assert [finding.name for finding in findings if finding.ok] == ["key", "service", "deployments"]
    service.faults.append(("/models", lambda _: refusal(401, "wrong key")))
    assert [finding.ok for finding in service.target().check()] == [True, False]


def test_the_key_is_in_nothing_that_is_said_or_kept(
    service: FakeService, ready: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = f"bad key {KEY}, api-key: {KEY}, Bearer {KEY}"
    said = [repr(ARM), repr(FOUNDRY)]
    target = ended(service, ready)
    said += [repr(job) for job in target.list()]
    for status in (401, 429, 500):
        service.faults += [("/models", lambda _, s=status: refusal(s, told, told))] * 4
        with pytest.raises(MaasError) as caught:
            target.endpoints()
        said += [str(caught.value), repr(caught.value), json.dumps(caught.value.to_json())]
    service.faults.append(("POST /fine_tuning/jobs", lambda _: refusal(500, told)))
    with pytest.raises(AmbiguousError) as lost:
        target.submit(ready)
    said += [str(lost.value), json.dumps(lost.value.to_json())]
    service.jobs["ftjob-1"]["error"] = {"code": "x", "message": f"Bearer {KEY}"}
    service.jobs["ftjob-1"]["status"] = "failed"
    said.append(repr(target.get("ftjob-1")))
    target.download("ftjob-1", tmp_path / "run")
    kept = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(kept) > 8
    assert "***" in "".join(said)  # it was there to be said
    assert KEY not in "".join([*said, *kept, caplog.text])


def test_a_wrong_key_is_an_auth_error_with_its_request(service: FakeService) -> None:
    answer = {"x-request-id": "", "apim-request-id": "apim-7"}
    service.faults.append(("/models", lambda _: refusal(401, "wrong key", **answer)))
    with pytest.raises(AuthError) as caught:
        service.target().endpoints()
    assert caught.value.request_id == "apim-7"


def test_arm_tokens_come_from_the_managed_identity() -> None:
    asked: list[str] = []

    def identity(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.url.path}?{request.url.query.decode()}")
        assert request.headers["x-identity-header"] == "header"
        return httpx.Response(200, json={"access_token": "t", "expires_on": "9999999999"})

    line = Transport(
        "http://identity.test",
        headers={"X-IDENTITY-HEADER": "header"},
        transport=httpx.MockTransport(identity),
    )
    settings = replace(
        ARM, identity_endpoint="http://identity.test/msi/token", identity_header="header"
    )
    token, ends = deployments.identity_token(settings, line=line)
    assert (token, ends) == ("t", 9999999999.0)
    assert asked == [
        "/msi/token?resource=https%3A%2F%2Fmanagement.azure.com%2F&api-version=2019-08-01"
    ]
