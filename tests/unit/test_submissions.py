"""A job is submitted once, whatever breaks: a server that is a table, and clients that crash."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import stamina
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maas_client import flow, submissions
from maas_client.errors import (
    AmbiguousError,
    ConflictError,
    NotFoundError,
    SettingsError,
    TargetError,
    UnreachableError,
)
from maas_client.jobs import Job, JobStatus
from maas_client.plan import Plan
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits, local_limits
from maas_client.targets.base import Target

SEND_FAULTS = (
    "crash before the request",
    "crash after the request",
    "lost request",
    "lost reply",
    "timeout",
    "503",
    "500 though it is done",
)
LOOK_FAULTS = ("crash at a look", "restart", "503 at a look")


class Crash(BaseException):
    """The client's process is gone: nothing of it runs any more."""


@dataclass
class Server:
    """What the service remembers. It may show a job late, and take it in late."""

    late: int = 0
    """Looks that pass before a new job is shown."""
    jobs: dict[str, str] = field(default_factory=dict)
    """Id -> key or name."""
    unseen: dict[str, int] = field(default_factory=dict)
    """Id -> looks until it is shown."""

    def make(self, mark: str) -> Job:
        made = f"ftjob-{len(self.jobs)}"
        self.jobs[made], self.unseen[made] = mark, self.late
        return self.job(made)

    def job(self, made: str) -> Job:
        return Job(made, JobStatus.RUNNING, "phi", "fake")

    def look(self, mark: str) -> Job | None:
        for made, had in self.jobs.items():
            self.unseen[made] = max(0, self.unseen[made] - 1)
            if had == mark and not self.unseen[made]:
                return self.job(made)
        return None


class Line:
    """What the two kinds of target share: faults come in their order, at a look or at a request."""

    identity = "fake"
    name = "fake"

    def __init__(self, server: Server, *faults: str) -> None:
        self.server = server
        self.faults = list(faults)
        self.meanwhile: Any = None
        """Called once while a request is under way."""

    def limits(self, job: FineTuningJob) -> Limits:
        return local_limits(job.model, target=self.name)

    def get(self, job_id: str) -> Job:
        self._look()
        if job_id not in self.server.jobs:
            raise NotFoundError("no such job", status=404)
        return self.server.job(job_id)

    def submit(self, plan: Plan) -> Job:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        self.content = json.dumps(plan.meaning)
        return self._send(self._mark(plan))

    def _mark(self, plan: Plan) -> str:
        raise NotImplementedError

    def _send(self, mark: str) -> Job:
        fault = self._next(SEND_FAULTS)
        if fault == "crash before the request":
            raise Crash
        if fault == "lost request":
            raise AmbiguousError("the connection was lost")
        if fault == "503":
            raise TargetError("busy", status=503)
        made = self._arrive(mark)
        if fault == "crash after the request":
            raise Crash
        if fault in ("lost reply", "timeout"):
            raise AmbiguousError("the connection was lost")
        if fault == "500 though it is done":
            raise TargetError("oh", status=500)
        return made

    def _arrive(self, mark: str) -> Job:
        raise NotImplementedError

    def _look(self) -> None:
        fault = self._next(LOOK_FAULTS)
        if fault == "crash at a look":
            raise Crash
        if fault == "restart":
            raise UnreachableError("nobody listens")
        if fault == "503 at a look":
            raise TargetError("busy", status=503)

    def _next(self, kinds: tuple[str, ...]) -> str:
        return self.faults.pop(0) if self.faults and self.faults[0] in kinds else ""


class Poster(Line):
    """Each request that arrives makes a job; a job is known by its key."""

    def find(self, key: str) -> Job | None:
        self._look()
        return self.server.look(key)

    def _mark(self, plan: Plan) -> str:
        return plan.key

    def _arrive(self, mark: str) -> Job:
        return self.server.make(mark)


class Putter(Line):
    """The job's name is its id, and a second request is the same job."""

    def _mark(self, plan: Plan) -> str:
        return plan.job.name or ""

    def _arrive(self, mark: str) -> Job:
        if self.server.jobs.setdefault(mark, self.content) != self.content:
            raise ConflictError("taken", status=409)
        return self.server.job(mark)


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    stamina.set_testing(True, attempts=100, cap=True)
    yield
    stamina.set_testing(False)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    from tests.conftest import JOB, ROW

    folder = tmp_path_factory.mktemp("job")
    (folder / "job.yaml").write_text(JOB)
    (folder / "train.jsonl").write_text(f"{ROW}\n" * 3)
    return flow.plan_job(folder / "job.yaml", Poster(Server()))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def submit(ready: Plan, client: Line, *, new: bool = False) -> flow.JobHandle:
    return flow.submit(ready, client, new=new)  # type: ignore[arg-type]


def lines(home: Path) -> list[dict[str, Any]]:
    (file,) = (home / "submissions").iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


acts = st.lists(
    st.tuples(
        st.lists(st.sampled_from(SEND_FAULTS + LOOK_FAULTS), max_size=6),
        st.booleans(),  # a second process submits the same meanwhile
        st.booleans(),  # a crash tears the line that is being written
    ),
    max_size=6,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=acts, late=st.integers(0, 4), kind=st.sampled_from([Poster, Putter]))
def test_crashes_and_retries_in_any_order_make_one_job(
    script: list[tuple[list[str], bool, bool]],
    late: int,
    kind: type[Line],
    ready: Plan,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("home")
    server = Server(late)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAAS_HOME", str(home))

        def run(client: Line) -> None:
            with suppress(Crash, TargetError):
                told.append(submit(ready, client).id)

        for faults, twice, torn in script:
            client, second = (
                kind(server, *faults),
                threading.Thread(target=run, args=[kind(server)]),
            )
            if twice:
                client.meanwhile = second.start
            run(client)
            if twice and client.meanwhile is None:
                second.join()
            if torn:
                for file in (home / "submissions").glob("*.jsonl"):
                    file.write_bytes(file.read_bytes() + b'{"key": "59905fd')
        told.append(submit(ready, kind(server)).id)
    assert len(server.jobs) == 1
    assert set(told) == set(server.jobs)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    faults=st.lists(st.sampled_from(SEND_FAULTS + LOOK_FAULTS), max_size=6),
    kind=st.sampled_from([Poster, Putter]),
)
def test_a_second_job_that_was_asked_for_is_made_once_too(
    faults: list[str],
    kind: type[Line],
    ready: Plan,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    server = Server(late=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAAS_HOME", str(tmp_path_factory.mktemp("home")))
        first = submit(ready, kind(server)).id
        client = kind(server, *faults)
        second = None
        while second is None:
            with suppress(Crash, TargetError):
                second = submit(ready, client, new=True).id
        assert submit(ready, kind(server)).id == second != first
    assert set(server.jobs) == {first, second}


def test_a_journal_line_is_on_the_disk_before_the_request(ready: Plan, home: Path) -> None:
    client = Poster(Server())
    seen: list[dict[str, Any]] = []
    client.meanwhile = lambda: seen.extend(lines(home))
    handle = submit(ready, client)
    assert [line["state"] for line in seen] == ["intent"]
    assert [line["state"] for line in lines(home)] == ["intent", "submitted"]
    assert lines(home)[-1]["job"] == handle.id
    assert ((home / "submissions").stat().st_mode & 0o777) == 0o700
    (file,) = (home / "submissions").iterdir()
    assert (file.stat().st_mode & 0o777) == 0o600


def test_a_job_that_is_there_is_found_and_said_to_be(ready: Plan) -> None:
    server = Server()
    first = submit(ready, Poster(server))
    again = submit(ready, Poster(server))
    assert (first.found, again.found) == (False, True)
    assert first.id == again.id


def test_a_lost_journal_does_not_make_a_second_job(ready: Plan, home: Path) -> None:
    for kind in (Poster, Putter):
        server = Server()
        first = submit(ready, kind(server))
        for file in (home / "submissions").iterdir():
            file.unlink()
        assert submit(ready, kind(server)).id == first.id
        assert len(server.jobs) == 1


def test_a_second_job_can_be_asked_for_without_a_journal_of_the_first(
    ready: Plan, home: Path
) -> None:
    server = Server()
    first = submit(ready, Putter(server))
    (file,) = (home / "submissions").iterdir()
    file.unlink()
    assert submit(ready, Putter(server), new=True).id != first.id
    assert len(server.jobs) == 2


def test_a_job_that_the_target_no_longer_has_is_made_again(ready: Plan) -> None:
    submit(ready, Poster(Server()))
    empty = Server()
    assert not submit(ready, Poster(empty)).found
    assert len(empty.jobs) == 1


def test_a_refusal_is_told_at_once_and_leaves_nothing_in_doubt(ready: Plan, home: Path) -> None:
    server = Server()
    named = replace(ready, job=ready.job.model_copy(update={"name": "taken"}))
    server.jobs["taken"] = "another"
    with pytest.raises(ConflictError):
        submit(named, Putter(server))
    assert [line["state"] for line in lines(home)] == ["intent", "refused"]


def test_what_stays_in_doubt_after_a_few_tries_is_raised(ready: Plan, home: Path) -> None:
    server = Server()
    with pytest.raises(AmbiguousError):
        submit(ready, Poster(server, *["lost request"] * 4))
    assert server.jobs == {}
    assert [line["state"] for line in lines(home)] == ["intent"]


def test_a_name_of_the_file_stays_and_a_second_job_gets_another(ready: Plan) -> None:
    named = replace(ready, job=ready.job.model_copy(update={"name": "nightly"}))
    server = Server()
    submit(named, Putter(server))
    submit(named, Putter(server), new=True)
    first, second = server.jobs
    assert first == "nightly"
    assert second.startswith("nightly-")


def test_other_rows_are_another_job_and_other_folders_are_not(
    job_folder: Path, tmp_path: Path
) -> None:
    def key() -> str:
        plan = flow.plan_job(job_folder / "job.yaml", target)
        return submissions.digest(plan.meaning)

    target: Target = Poster(Server())  # type: ignore[assignment]
    first = key()
    moved = job_folder.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    job_folder = moved
    assert key() == first
    (moved / "train.jsonl").write_text((moved / "train.jsonl").read_text().replace("Left", "Up"))
    assert key() != first


def test_without_a_journal_nothing_is_sent(
    ready: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "file"))
    server = Server()
    with pytest.raises(SettingsError, match="journal"):
        submit(ready, Poster(server))
    assert server.jobs == {}


def test_a_broken_journal_says_so(ready: Plan, home: Path) -> None:
    submit(ready, Poster(Server()))
    (file,) = (home / "submissions").iterdir()
    file.write_text("what?\n")
    with pytest.raises(SettingsError, match="broken"):
        submit(ready, Poster(Server()))


def test_a_refusal_after_doubt_leaves_the_doubt() -> None:
    """The first try may have made the job: `--new` must go on asking for that one."""
    from maas_client.errors import AmbiguousError, AuthError
    from maas_client.submissions import Entry, exactly_once, opened

    def lost(_: Entry) -> tuple[Job, bool]:
        raise AmbiguousError("no answer")

    def closed(_: Entry) -> tuple[Job, bool]:
        raise AuthError("the key has expired", status=401)

    keys = []
    for attempt in (lost, closed, closed):
        with opened("doubted") as journal:
            entry = journal.entry("somewhere", new=True)
            keys.append(entry.key)
            with pytest.raises(TargetError):
                exactly_once(journal, entry, attempt)
    assert len(set(keys)) == 1
