"""One job file, every target: the same verbs, statuses, events and run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import pytest

from maas_client import flow
from maas_client.errors import NotFoundError, TargetError
from maas_client.jobs import Event, Job, JobStatus
from maas_client.plan import Plan
from maas_client.settings import LocalSettings
from maas_client.spec.loading import load_job
from maas_client.spec.rundir import RunDir
from maas_client.targets.azure_ml import AzureMLTarget
from maas_client.targets.base import Target
from maas_client.targets.local import LocalTarget
from tests.conftest import JOB, ROW
from tests.mocking import Mock, mock_command, running_mock

PLACES = ("local+simulate", "local+train", "azure_ml+mock", "foundry+mock")
TEXT = JOB.replace("hyperparameters:", 'hyperparameters:\n  num_train_epochs: "5"')
ORDER = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED)


@dataclass(frozen=True)
class Journey:
    """A job on one target, from its plan to its files."""

    place: Target
    plan: Plan
    handle: flow.JobHandle
    seen: tuple[JobStatus, ...]
    """Statuses, as they were when each event came."""
    events: tuple[Event, ...]
    run: RunDir
    elsewhere: Callable[[], Target]
    """The same target, as another process opens it."""

    @property
    def losses(self) -> list[float]:
        return [event.data["loss"] for event in self.events if "loss" in event.data]


class Go(Protocol):
    def __call__(self, name: str) -> Journey: ...


@pytest.fixture(scope="module", autouse=True)
def _own_journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAAS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("job")
    (made / "job.yaml").write_text(TEXT)
    rows = [ROW.replace("tap", f"tap {number}") for number in range(12)]
    (made / "train.jsonl").write_text("\n".join(rows) + "\n")
    return made


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    options = ("--engine", "simulate", "--simulate-seconds", "2", "--capacity", "4")
    with running_mock(tmp_path_factory.mktemp("mock"), *options) as running:
        mock_command(running.home, "set", "--weights", "on")  # for OpenAI's wire hands out none
        yield running


@pytest.fixture(scope="module")
def opener(folder: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Target]]:
    """Opens a target by its name in PLACES; the mock starts when it is first needed."""
    opened: list[Target] = []

    def open_one(name: str) -> Target:
        match name:
            case "local+simulate":
                made: Target = LocalTarget(
                    LocalSettings(runs=str(folder / "simulated")), engine="simulate"
                )
            case "local+train":
                made = LocalTarget(LocalSettings(runs=str(folder / "trained"), base="tiny"))
            case "azure_ml+mock":
                made = AzureMLTarget(request.getfixturevalue("mock").settings)
            case _:
                pytest.importorskip("maas_client.targets.foundry")
                assert request.getfixturevalue("mock").settings  # and the environment points at it
                made = flow.open_target("mock-foundry")
        opened.append(made)
        return made

    yield open_one
    for place in opened:
        place.close()


@pytest.fixture(scope="module")
def go(folder: Path, opener: Callable[[str], Target]) -> Go:
    """The journey on a target; each is made once."""

    @cache
    def travelled(name: str) -> Journey:
        place = opener(name)
        plan = flow.plan_job(folder / "job.yaml", place)
        handle = flow.submit(plan, place)
        seen, events = [handle.get().status], []
        for event in handle.follow():
            events.append(event)
            seen.append(handle.get().status)
        run = flow.collect(handle, folder / f"out {name}")
        return Journey(place, plan, handle, tuple(seen), tuple(events), run, lambda: opener(name))

    return travelled


each = pytest.mark.parametrize("name", PLACES)


@each
def test_statuses_go_forward_from_queued_to_succeeded(name: str, go: Go) -> None:
    seen = go(name).seen
    assert sorted(seen, key=ORDER.index) == list(seen)
    assert seen[-1] is JobStatus.SUCCEEDED
    assert JobStatus.FAILED not in seen


@each
def test_events_are_numbered_without_gaps_and_end_with_the_status(name: str, go: Go) -> None:
    events = go(name).events
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    told = [event.data["status"] for event in events if event.kind == "status" and event.data]
    assert told == ["running", "succeeded"]
    assert events[-1].data == {"status": "succeeded"}
    assert all(event.message for event in events)


@each
def test_metrics_say_step_and_loss_and_the_loss_falls(name: str, go: Go) -> None:
    steps = [event.data["step"] for event in go(name).events if event.kind == "metric"]
    assert steps == sorted(steps)
    assert steps[-1] == go(name).plan.steps
    losses = go(name).losses
    assert len(losses) > 1
    assert losses[-1] < losses[0]


@each
def test_another_process_reads_the_same_events_later(name: str, go: Go) -> None:
    journey = go(name)
    later = list(journey.elsewhere().events(journey.handle.id))
    told = [(event.kind, event.message, event.data) for event in journey.events]
    read = [(event.kind, event.message, event.data) for event in later]
    assert read == told
    rest = list(journey.elsewhere().events(journey.handle.id, after=2))
    assert [event.seq for event in rest] == [event.seq for event in later[2:]]


@each
def test_the_download_is_a_run_directory(name: str, go: Go, folder: Path) -> None:
    run = go(name).run
    for file in (
        run.job_file,
        run.plan_file,
        run.status_file,
        run.events_file,
        run.metrics_file,
        run.manifest_file,
    ):
        assert file.is_file(), file
    assert run.origin_file.is_file() is name.endswith("+mock")
    status = run.read_status()
    assert status is not None
    assert status.status is JobStatus.SUCCEEDED
    job, given = load_job(run.job_file), load_job(folder / "job.yaml")
    assert (job.task, job.model.asset_name) == (given.task, given.model.asset_name)
    assert job.hyperparameters.items() >= given.hyperparameters.items()
    losses = [metric["loss"] for metric in run.metrics() if "loss" in metric]
    assert losses == pytest.approx(go(name).losses, abs=1e-4)
    numbers = [event.seq for event in run.events()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert list(run.events())[-1].data == {"status": "succeeded"}
    assert {file.name for file in run.adapter.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@each
def test_the_job_says_what_it_is(name: str, go: Go) -> None:
    journey = go(name)
    job = journey.handle.get()
    assert (job.id, job.status, job.target) == (
        journey.handle.id,
        JobStatus.SUCCEEDED,
        journey.place.name,
    )
    assert "Phi-3-mini-4k-instruct" in job.model
    assert job.created_at
    assert job.ended_at
    assert job.ended_at >= job.created_at - 1
    assert job.error is None


@pytest.mark.parametrize("name", PLACES)
def test_what_was_simulated_says_so_and_what_was_trained_does_not(name: str, go: Go) -> None:
    journey = go(name)
    status = journey.run.read_status()
    assert status is not None
    assert journey.handle.get().simulated is status.simulated is (name != "local+train")


@each
def test_the_same_job_again_is_found_and_no_second_is_made(
    name: str, go: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journey = go(name)
    before = [job.id for job in journey.place.list()]
    for home in (None, tmp_path / "another home"):  # with the journal, and without
        if home is not None:
            monkeypatch.setenv("MAAS_HOME", str(home))
        place = journey.elsewhere()
        again = flow.submit(journey.plan, place)
        assert again.id == journey.handle.id
        assert again.found
    assert [job.id for job in journey.place.list()] == before


@each
def test_another_one_can_be_asked_for_and_cancelled(
    name: str, go: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journey = go(name)
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "another home"))  # the first stays the last here
    handle = flow.submit(journey.plan, journey.place, new=True)
    assert handle.id != journey.handle.id
    assert not handle.found
    assert journey.place.list()[0].id == handle.id  # the newest first
    handle.cancel()
    job: Job = handle.wait()
    assert job.status is JobStatus.CANCELLED
    assert [event.data for event in journey.place.events(handle.id)][-1] == {"status": "cancelled"}
    with pytest.raises(TargetError, match="cancelled"):
        flow.collect(handle, tmp_path / "never")
    assert not (tmp_path / "never").exists()


@each
def test_what_is_not_there_is_not_found(name: str, go: Go, tmp_path: Path) -> None:
    place = go(name).place
    for ask in (
        lambda: place.get("nothing"),
        lambda: list(place.events("nothing")),
        lambda: place.cancel("nothing"),
        lambda: place.download("nothing", tmp_path / "run"),
    ):
        with pytest.raises(NotFoundError):
            ask()
    assert not any(tmp_path.iterdir())


@each
def test_a_download_does_not_overwrite_what_is_there(name: str, go: Go, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(TargetError, match="not empty"):
        go(name).handle.download(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@each
def test_a_plan_is_for_the_target_that_it_was_made_for(name: str, go: Go) -> None:
    journey = go(name)
    with pytest.raises(TargetError, match="the plan was made for other"):
        flow.submit(replace(journey.plan, target="other"), journey.place)


@pytest.mark.parametrize("name", [name for name in PLACES if name.endswith("+mock")])
def test_the_same_engine_tells_the_same_losses_on_every_target(name: str, go: Go) -> None:
    assert go(name).losses == pytest.approx(go("local+simulate").losses, abs=1e-4)
