"""A job on Kaito, from its file to its adapter: the real kubernetes client, a stand-in of a cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from maas_client import flow
from maas_client.cli.main import run_cli
from maas_client.errors import (
    AuthError,
    ConflictError,
    NotFoundError,
    PlanError,
    SettingsError,
    TargetError,
    UnreachableError,
)
from maas_client.jobs import JobStatus
from maas_client.plan import DataPlan, Plan, make_plan
from maas_client.settings import KaitoSettings, LocalSettings
from maas_client.spec.dataset import check
from maas_client.spec.loading import load_job
from maas_client.spec.rundir import read_json
from maas_client.targets.kaito import KaitoTarget
from maas_client.targets.local import LocalTarget
from tests.conftest import JOB
from tests.fake_kubernetes import FakeCluster, dockerconfig, running_cluster
from tests.fake_registry import FakeRegistry, running_registry

SAMPLE = Path(__file__).parents[2] / "samples" / "kaito"
LOG = (
    "2026-11-24T12:02:00Z Model Loaded\n"
    "2026-11-24T12:02:01Z {'loss': 2.5, 'learning_rate': 2e-05, 'epoch': 0.5}\n"
    "2026-11-24T12:02:02Z {'loss': 1.5, 'learning_rate': 1e-05, 'epoch': 1.0}\n"
)
READY = ("True", "workspaceResourceStatusSuccess", "workspace resource is ready")
STARTED = ("True", "WorkspaceTuningJobStatusStarted", "Tuning job has started")
ENDED = ("True", "workspaceSucceeded", "workspace succeeds")
ADAPTER = {
    "data/adapter_config.json": b'{"peft_type": "LORA"}',
    "data/adapter_model.safetensors": b"weights",
}


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[tuple[FakeCluster, KaitoSettings]]:
    with running_cluster(tmp_path) as found:
        yield found


@pytest.fixture
def cluster(fake: tuple[FakeCluster, KaitoSettings]) -> FakeCluster:
    return fake[0]


@pytest.fixture
def target(fake: tuple[FakeCluster, KaitoSettings]) -> Iterator[KaitoTarget]:
    place = KaitoTarget(fake[1])
    yield place
    place.close()


def planned(folder: Path, target: KaitoTarget, text: str = JOB) -> Plan:
    """A plan without its tokens, which a child process would count."""
    (folder / "job.yaml").write_text(text)
    job, rows = load_job(folder / "job.yaml"), folder / "train.jsonl"
    data = DataPlan(str(rows), check(rows, job.task))
    return make_plan(job.rebased(folder, folder), target.limits(job), training=data)


NAMED = JOB.replace("task:", "name: tap\ntask:")


@pytest.fixture
def plan(job_folder: Path, target: KaitoTarget) -> Plan:
    return planned(job_folder, target, NAMED)


def to_registry(settings: KaitoSettings, where: FakeRegistry) -> KaitoSettings:
    return replace(settings, output_image=f"{where.address}/team/adapters")


def test_a_job_goes_from_its_file_to_its_adapter(
    job_folder: Path, fake: tuple[FakeCluster, KaitoSettings], tmp_path: Path
) -> None:
    cluster, settings = fake
    text = JOB.replace("task:", "display_name: Taps\ntask:")
    with running_registry() as images:
        target = KaitoTarget(to_registry(settings, images))
        cluster.objects["secrets", "push"] = dockerconfig(images.address)
        handle = flow.submit(planned(job_folder, target, text), target)
        job = handle.get()
        assert (job.status, job.model, job.display_name) == (
            JobStatus.QUEUED,
            "Phi-3-mini-4k-instruct",
            "Taps",
        )
        cluster.stands(handle.id, "Running", ResourceReady=READY, JobStarted=STARTED)
        cluster.runs(handle.id, LOG, **{handle.id: {"running": {}}})
        assert handle.get().status is JobStatus.RUNNING
        first = list(target.events(handle.id))
        assert [event.data.get("loss") for event in first if event.kind == "metric"] == [2.5, 1.5]
        with pytest.raises(TargetError, match="only an ended job"):
            handle.download(tmp_path / "out")
        image = images.push("team/adapters", handle.id, {"data/other.txt": b"x"}, ADAPTER)
        cluster.stands(
            handle.id,
            "Succeeded",
            ResourceReady=READY,
            JobStarted=STARTED,
            WorkspaceSucceeded=ENDED,
        )
        told = [event.data["status"] for event in first if event.kind == "status"]
        assert told == ["running"]
        seen = [event.seq for event in handle.follow(after=len(first))]
        assert seen == [len(first) + 1]  # its end, and nothing twice
        assert handle.get().output_model == image
        run = handle.download(tmp_path / "out")
        assert (run.adapter / "adapter_model.safetensors").read_bytes() == b"weights"
        assert [row["loss"] for row in run.metrics()] == [2.5, 1.5]
        status = run.read_status()
        assert status is not None
        assert status.status is JobStatus.SUCCEEDED
        assert read_json(run.plan_file)["hyperparameters"]["learning_rate"]["value"] == 2e-05
        assert "adapter/adapter_config.json" in read_json(run.manifest_file)["outputs"]
        assert yaml.safe_load(run.job_file.read_text())["task"] == "chat_completion"
        target.close()


def test_what_was_made_is_read_back_and_goes_with_its_workspace(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    flow.submit(plan, target)
    made = [ask for ask in cluster.asked if ask.startswith("PATCH") and "/workspaces/" in ask]
    assert len(made) == 1
    assert "fieldManager=maas-finetune" in made[0]
    assert "fieldValidation=Strict" in made[0]
    owner = cluster.workspace("tap")["metadata"]["uid"]
    for name in ("tap-config", "tap-rows"):
        assert cluster.objects["configmaps", name]["metadata"]["ownerReferences"][0]["uid"] == owner
    target.cancel("tap")
    assert cluster.names("workspaces") == []
    assert cluster.names("configmaps") == ["tap-record"]
    assert target.get("tap").status is JobStatus.CANCELLED
    assert [event.data for event in target.events("tap")] == [{"status": "cancelled"}]
    assert [job.id for job in target.list()] == ["tap"]
    assert flow.submit(plan, target).found  # the same job, which was cancelled
    assert cluster.names("workspaces") == []
    again = flow.submit(plan, target, new=True)
    assert again.id != "tap"
    assert cluster.names("workspaces") == [again.id]


def test_who_may_only_look_sees_a_job_that_ended(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    flow.submit(plan, target)
    cluster.stands("tap", "Succeeded", WorkspaceSucceeded=ENDED)
    cluster.denied |= {"patch configmaps", "patch workspaces"}
    assert target.get("tap").status is JobStatus.SUCCEEDED
    assert [job.status for job in target.list()] == [JobStatus.SUCCEEDED]


def test_a_job_that_ended_is_known_when_its_node_was_given_back(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    flow.submit(plan, target)
    cluster.stands("tap", "Succeeded", WorkspaceSucceeded=ENDED)
    assert target.get("tap").status is JobStatus.SUCCEEDED
    target.cancel("tap")
    assert cluster.names("workspaces") == ["tap"]  # it was over
    cluster._delete("workspaces", "tap", cluster.workspace("tap"))
    assert target.get("tap").status is JobStatus.SUCCEEDED
    assert [event.message for event in target.events("tap")][-1] == "succeeded"


def test_a_failed_container_is_the_reason_and_a_second_try_is_no_failure(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    flow.submit(plan, target)
    failed = ("False", "workspaceFailed", "tuning job failed")
    cluster.stands("tap", "Failed", JobStarted=STARTED, WorkspaceSucceeded=failed)
    cluster.runs("tap", LOG, tap={"terminated": {"exitCode": 1, "reason": "Error"}})
    cluster.objects["jobs", "tap"] = {"metadata": {"name": "tap"}, "status": {"active": 1}}
    assert target.get("tap").status is JobStatus.RUNNING
    cluster.objects["jobs", "tap"]["status"] = {"failed": 7}
    job = target.get("tap")
    assert (job.status, job.error) == (
        JobStatus.FAILED,
        "container tap ended with exit code 1: Error",
    )
    assert list(target.events("tap"))[-1].message == f"failed: {job.error}"


def test_work_that_is_done_has_succeeded_though_a_container_waits_for_ever(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    flow.submit(plan, target)
    cluster.stands("tap", "Running", JobStarted=STARTED)
    done = {"terminated": {"exitCode": 0}}
    cluster.runs("tap", LOG, tap=done, pusher={"running": {}}, pause={"running": {}})
    assert target.get("tap").status is JobStatus.RUNNING
    cluster.runs("tap", LOG, tap=done, pusher=done, pause={"running": {}})
    assert target.get("tap").status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(
    "part",
    [
        "POST /api/v1/namespaces/default/configmaps",
        "configmaps/tap-config",
        "workspaces/tap?",
        "configmaps/tap-rows",
    ],
)
@pytest.mark.parametrize("status", [0, 503])
def test_a_reply_that_is_lost_makes_one_job(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan, part: str, status: int
) -> None:
    cluster.faults.append((part, status))
    handle = flow.submit(plan, target)
    assert not cluster.faults
    assert cluster.names("workspaces") == [handle.id] == ["tap"]
    assert cluster.names("configmaps") == ["tap-config", "tap-record", "tap-rows"]
    assert flow.submit(plan, target).found


def test_a_name_that_is_taken_is_a_conflict(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan, job_folder: Path
) -> None:
    flow.submit(plan, target)
    other = planned(job_folder, target, NAMED.replace("0.00002", "0.00003"))
    with pytest.raises(ConflictError, match="belongs to another job"):
        flow.submit(other, target)
    config = yaml.safe_load(
        cluster.objects["configmaps", "tap-config"]["data"]["training_config.yaml"]
    )
    assert config["training_config"]["TrainingArguments"]["learning_rate"] == 2e-05


def test_a_workspace_of_somebody_else_is_not_touched(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    theirs = {"metadata": {"name": "tap"}, "tuning": {"preset": {"name": "phi-4"}}}
    cluster._keep("workspaces", theirs)
    with pytest.raises(ConflictError, match="did not make"):
        flow.submit(plan, target)
    assert cluster.workspace("tap")["tuning"] == {"preset": {"name": "phi-4"}}
    assert target.get("tap").model == "phi-4"  # it can be watched all the same


def test_a_field_that_somebody_else_applied_is_a_conflict(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    flow.submit(plan, target)
    cluster.owners["workspaces", "tap"]["kubectl"] = {("tuning", "method"): "qlora"}
    del cluster.objects["configmaps", "tap-record"]["metadata"]["annotations"]["maas-finetune/made"]
    with pytest.raises(ConflictError, match=r'conflict with "kubectl": \.tuning\.method'):
        target.submit(replace(plan, key=_key(cluster)))


def _key(cluster: FakeCluster) -> str:
    notes = cluster.workspace("tap")["metadata"]["annotations"]
    return str(notes["maas-finetune/key"])


def test_a_refusal_of_the_server_leaves_the_name_free(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    cluster.faults.append(("PATCH /apis/kaito.sh", 422))
    with pytest.raises(TargetError, match="the server had an error") as caught:
        flow.submit(plan, target)
    assert caught.value.status == 422
    assert not cluster.names("configmaps")
    assert not cluster.names("workspaces")
    assert not flow.submit(plan, target).found


@pytest.mark.parametrize(
    ("denied", "kind", "words"),
    [
        ("create configmaps", AuthError, "configmaps is forbidden"),
        ("patch workspaces", AuthError, "workspaces is forbidden"),
    ],
)
def test_what_is_forbidden_says_so(
    cluster: FakeCluster,
    target: KaitoTarget,
    plan: Plan,
    denied: str,
    kind: type[Exception],
    words: str,
) -> None:
    cluster.denied.add(denied)
    with pytest.raises(kind, match=words):
        flow.submit(plan, target)


def test_a_cluster_without_kaito_says_so(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    cluster.has_kaito = False
    with pytest.raises(TargetError, match="the cluster has no Kaito"):
        flow.submit(plan, target)
    findings = target.check()
    assert [(found.name, found.ok) for found in findings] == [("cluster", True), ("kaito", False)]


def test_the_schema_of_the_cluster_may_be_hidden(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    cluster.denied.add("get customresourcedefinitions")
    assert not flow.submit(plan, target).found
    assert all(found.ok for found in target.check())


@pytest.mark.parametrize(
    ("denied", "name", "words"),
    [
        ("get pods/log", "rights", "get pods/log"),
        ("patch workspaces", "rights", "patch workspaces"),
    ],
)
def test_check_names_the_right_that_is_missing(
    cluster: FakeCluster, target: KaitoTarget, denied: str, name: str, words: str
) -> None:
    cluster.denied.add(denied)
    last = target.check()[-1]
    assert (last.name, last.ok) == (name, False)
    assert words in last.detail
    assert last.next_step


def test_check_finds_a_secret_that_cannot_push(cluster: FakeCluster, target: KaitoTarget) -> None:
    assert all(found.ok for found in target.check())
    cluster.objects["secrets", "push"] = dockerconfig("elsewhere.example.com")
    assert "has no login for registry.example.com" in target.check()[-1].detail
    del cluster.objects["secrets", "push"]
    assert not target.check()[-1].ok


def test_no_cluster_and_no_kubeconfig_are_said(tmp_path: Path) -> None:
    missing = KaitoSettings("kaito", kubeconfig=str(tmp_path / "none"), output_claim="c")
    target = KaitoTarget(missing)
    assert target.identity == "kaito no cluster default"
    with pytest.raises(SettingsError, match="target kaito: "):
        target.list()
    nobody = {
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "users": [{"name": "a", "user": {}}],
        "current-context": "a",
    }
    (tmp_path / "none").write_text(yaml.safe_dump(nobody))
    target = KaitoTarget(missing)
    with pytest.raises(UnreachableError, match="the cluster does not answer"):
        target.list()
    target.close()


def test_an_absent_job_is_not_found(target: KaitoTarget) -> None:
    with pytest.raises(NotFoundError, match="there is no Workspace nobody in default"):
        target.get("nobody")
    assert target.list() == []


def test_an_adapter_in_a_claim_stays_there_and_the_records_come(
    cluster: FakeCluster, fake: tuple[FakeCluster, KaitoSettings], job_folder: Path, tmp_path: Path
) -> None:
    claim = replace(fake[1], output_image=None, output_secret=None, output_claim="adapters")
    target = KaitoTarget(claim)
    handle = flow.submit(planned(job_folder, target), target)
    cluster.stands(handle.id, "Succeeded", WorkspaceSucceeded=ENDED)
    with pytest.raises(TargetError, match="only a pod can read") as caught:
        handle.download(tmp_path / "out")
    assert "docs/kaito.md" in caught.value.hint
    assert (tmp_path / "out" / "job.yaml").exists()
    target.close()


def test_the_sample_prints_what_is_beside_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(SAMPLE)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code = run_cli(["submit", "job.yaml", "--target", "kaito", "--dry-run", "client"])
    assert code == 0
    # The key is made of every resolved value: it changes with what a version knows.
    printed, kept = (
        re.sub(r"key: [0-9a-f]{32}", "key: …", text)
        for text in (capsys.readouterr().out, (SAMPLE / "workspace.yaml").read_text())
    )
    assert printed == kept, (
        "maas submit job.yaml --target kaito --dry-run client > workspace.yaml, in samples/kaito"
    )


def test_a_dry_run_on_the_server_applies_nothing(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    said = flow.manifest(plan, target, server=True)
    assert said.startswith("# the cluster takes it, but for the ConfigMap")
    assert not cluster.names("workspaces")
    assert not cluster.names("configmaps")
    assert all("dryRun=All" in ask for ask in cluster.asked if not ask.startswith("GET"))
    cluster.faults.append(("PATCH /apis/kaito.sh", 422))
    with pytest.raises(TargetError, match="the server had an error"):
        flow.manifest(plan, target, server=True)


def test_other_targets_have_no_manifests(plan: Plan) -> None:
    with pytest.raises(TargetError, match="local has no manifests"):
        flow.manifest(plan, LocalTarget(LocalSettings()))


def test_a_secret_of_the_caller_reaches_no_error(
    cluster: FakeCluster, target: KaitoTarget, plan: Plan
) -> None:
    cluster.faults.append(("GET /apis/apiextensions", 403))
    cluster.faults.append(("POST /api/v1", 401))
    with pytest.raises(AuthError) as caught:
        flow.submit(plan, target)
    assert "token-that-nobody-may-see" not in repr(caught.value)
    assert os.environ["MAAS_HOME"]  # the journal of this test alone


def test_a_plan_that_kaito_would_refuse_never_leaves_the_house(
    cluster: FakeCluster, target: KaitoTarget, job_folder: Path
) -> None:
    text = JOB.replace("Phi-3-mini-4k-instruct/versions/15", "Phi-3-small-8k-instruct/versions/6")
    (job_folder / "job.yaml").write_text(text)
    with pytest.raises(PlanError, match="no preset for tuning in Kaito"):
        flow.plan_job(job_folder / "job.yaml", target)
    assert cluster.asked == []
