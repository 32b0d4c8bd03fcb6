"""Submitting against the real wire: killed clients, lost replies, a killed server; one job each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from maas_client import flow
from maas_client.errors import TargetError
from maas_client.plan import Plan
from maas_client.spec.rundir import read_lines, write_json
from maas_client.targets.azure_ml import AzureMLTarget
from maas_client.targets.base import Target
from tests.conftest import ROW
from tests.fake_azure import MOCK
from tests.mocking import Mock, end_mock, running_mock, start_mock
from tests.wire import control, line_to, place_of

QUIET = ("--engine", "simulate", "--simulate-seconds", "600")
"""The first job runs and runs, and all others wait: no time is spent on engines."""

DEATHS = ("nobody dies", "at the intent", "while it is sent", "once it is there")
FAULTS: dict[str, dict[str, Any]] = {
    "no fault": {},
    "lost-request": {"kind": "lost-request", "times": 1},
    "lost-reply": {"kind": "lost-reply", "times": 1},
    "cut": {"kind": "cut", "bytes": 30, "times": 1},
    "503": {"kind": "status", "status": 503, "times": 1},
}


CLIENT = """
import json, sys
from maas_client import flow
from maas_client.plan import plan_from_json
from maas_client.spec.rundir import read_json
from pathlib import Path
plan = plan_from_json(read_json(Path(sys.argv[1])))
flow.submit(plan, flow.open_target(plan.target))
"""


@dataclass(frozen=True)
class Story:
    """One way in which a submission goes wrong, with a job of its own."""

    death: str
    fault: str
    plan: Plan
    folder: Path

    @property
    def word(self) -> str:
        """What the job's name begins with."""
        return f"{self.death} {self.fault}".replace(" ", "-")

    def faults(self) -> Iterator[dict[str, Any]]:
        match = {"method": "PUT", "path": f"/jobs/{self.word}-"}
        if self.death == "while it is sent":
            yield {"kind": "slow", "seconds": 1, "times": 1, **match}
        if FAULTS[self.fault]:
            yield FAULTS[self.fault] | match

    def client(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(self.folder / "plan.json")],
            env=os.environ | {"MAAS_HOME": str(self.folder / "home")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def write_story(folder: Path, plan: Plan, death: str, fault: str) -> Story:
    story = Story(death, fault, plan, folder)
    job = plan.job.model_copy(update={"display_name": story.word})
    story = replace(story, plan=replace(plan, job=job))
    write_json(folder / "plan.json", story.plan.to_json())
    return story


@pytest.fixture
def plan(job_folder: Path) -> Plan:
    place = AzureMLTarget(replace(MOCK, region=None))
    return flow.plan_job(job_folder / "job.yaml", place)


def until(seen: Callable[[], Any], child: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for it; a child that has ended meanwhile has nothing left to be killed in."""
    end = time.monotonic() + 60
    while not seen() and (child is None or child.poll() is None):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def names(client: httpx.Client, mock: Mock) -> list[str]:
    """Every job that the server has."""
    found = []
    url = f"{place_of(mock)}/jobs"
    while url:
        page = client.get(url).json()
        found += [entry["name"] for entry in page["value"]]
        url = page.get("nextLink")
    return found


def felt(client: httpx.Client, mock: Mock, story: Story) -> bool:
    """Whether the story's request has met its slow fault."""
    controls = client.get("/__mock__/controls", headers=control(mock)).json()
    slow = [fault for fault in controls["faults"] if fault["kind"] == "slow" and fault["fired"]]
    return any(re.search(fault["path"], f"/jobs/{story.word}-") for fault in slow) or any(
        "fine_tuning" in fault["path"] for fault in slow
    )


def die(story: Story, mock: Mock, is_there: Callable[[], bool] | None = None) -> None:
    """A client submits, and is killed where the story says."""
    child = story.client()
    journal = story.folder / "home" / "submissions"
    with line_to(mock) as client:
        moments = {
            "at the intent": lambda: any(journal.glob("*.jsonl")),
            "while it is sent": lambda: felt(client, mock, story),
            "once it is there": is_there
            or (lambda: any(n.startswith(story.word) for n in names(client, mock))),
        }
        until(moments[story.death], child)
    child.send_signal(signal.SIGKILL)
    child.wait()


def submit_again(story: Story, place: Target) -> str:
    """As a user would, until it is told which job it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAAS_HOME", str(story.folder / "home"))
        for _ in range(5):
            try:
                return flow.submit(story.plan, place).id
            except TargetError as error:
                if not error.may_pass:
                    raise
    raise AssertionError("it never got through")


def test_clients_that_are_killed_and_replies_that_are_lost_make_one_job_each(
    tmp_path: Path, plan: Plan
) -> None:
    stories = [
        write_story(tmp_path / f"{number}", plan, death, fault)
        for number, (death, fault) in enumerate(product(DEATHS, FAULTS))
    ]
    assert len(stories) == 20
    with running_mock(tmp_path / "mock", *QUIET) as mock, line_to(mock) as client:
        faults = [fault for story in stories for fault in story.faults()]
        answer = client.patch("/__mock__/controls", json={"faults": faults}, headers=control(mock))
        assert answer.status_code == 200, answer.text
        os.environ["MAAS_MOCK_HOME"] = str(mock.home)
        with ThreadPoolExecutor(5) as pool:
            killed = [story for story in stories if story.death != "nobody dies"]
            list(pool.map(lambda story: die(story, mock), killed))
        place = AzureMLTarget(mock.settings)
        told = {story.word: submit_again(story, place) for story in stories}
        place.close()
        there = names(client, mock)
        journal = client.get("/__mock__/journal?$top=9999", headers=control(mock)).text
    assert sorted(there) == sorted(told.values())
    assert all(name.startswith(word) for word, name in told.items())
    happened = {json.loads(line).get("fault") for line in journal.splitlines()}
    assert happened >= {"lost-request", "lost-reply", "cut", "status", "slow"}


def test_two_processes_and_a_server_that_is_killed_under_them_make_one_job(
    tmp_path: Path, plan: Plan
) -> None:
    story = write_story(tmp_path / "story", plan, "nobody dies", "no fault")
    home = tmp_path / "mock"
    mock = start_mock(home, *QUIET)
    try:
        os.environ["MAAS_MOCK_HOME"] = str(home)
        children = [story.client(), story.client()]
        with line_to(mock) as client:
            until(lambda: any(name.startswith(story.word) for name in names(client, mock)))
        os.kill(mock.state.pid, signal.SIGKILL)
        mock = start_mock(home, *QUIET)
        for child in children:
            child.wait(60)
        place = AzureMLTarget(mock.settings)
        told = submit_again(story, place)
        place.close()
        with line_to(mock) as client:
            assert names(client, mock) == [told]
    finally:
        end_mock(home)
    (file,) = (story.folder / "home" / "submissions").iterdir()
    assert {line["job"] for line in read_lines(file)} <= {"", told}


POSTS = [("nobody dies", fault) for fault in FAULTS] + [
    (death, fault) for death in DEATHS[1:] for fault in ("no fault", "lost-reply")
]


def test_a_service_that_makes_a_job_of_each_request_gets_one_request_that_counts(
    tmp_path: Path, job_folder: Path
) -> None:
    """OpenAI's wire: the id is the service's, and a POST that is sent twice would be two jobs."""
    pytest.importorskip("maas_client.targets.foundry")
    rows = [ROW.replace("tap", f"tap {number}") for number in range(12)]
    (job_folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    with running_mock(tmp_path / "mock", *QUIET) as mock, line_to(mock) as client:
        os.environ["MAAS_MOCK_HOME"] = str(mock.home)
        place = flow.open_target("mock-foundry")
        plan = flow.plan_job(job_folder / "job.yaml", place)
        told = []
        for number, (death, fault) in enumerate(POSTS):
            story = write_story(tmp_path / f"{number}", plan, death, fault)
            match = {"method": "POST", "path": "/fine_tuning/jobs$"}
            faults = [entry | match for entry in story.faults()]
            asked = {"faults": faults}
            client.patch("/__mock__/controls", json=asked, headers=control(mock))
            if death != "nobody dies":
                die(story, mock, lambda n=number: len(place.list(limit=100)) > n)  # type: ignore[misc]
            told.append(submit_again(story, place))
        there = [job.id for job in place.list(limit=100)]
        place.close()
    assert sorted(there) == sorted(told)
    assert len(set(told)) == len(POSTS)
