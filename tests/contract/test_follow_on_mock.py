"""`maas follow` in a process of its own, and the server killed under it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maas_client import flow
from maas_client.targets.azure_ml import AzureMLTarget
from tests.mocking import mock_command, start_mock

SLOW = ("--engine", "simulate", "--simulate-seconds", "3600")


def until(seen: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not seen():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def test_following_outlives_a_server_that_is_killed_and_comes_back(
    job_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, out, err = tmp_path / "mock", tmp_path / "out", tmp_path / "err"
    mock = start_mock(home, *SLOW)
    monkeypatch.setenv("MAAS_MOCK_HOME", str(home))
    try:
        place = AzureMLTarget(mock.settings)
        handle = flow.submit(flow.plan_job(job_folder / "job.yaml", place), place)
        words = [sys.executable, "-m", "maas_client", "follow", handle.id, "--target", "mock"]
        with out.open("w") as stdout, err.open("w") as stderr:
            child = subprocess.Popen([*words, "--json"], stdout=stdout, stderr=stderr)
        until(lambda: out.read_text().count("\n") >= 2)
        os.kill(mock.state.pid, signal.SIGKILL)
        until(lambda: "reconnecting: target mock does not answer" in err.read_text())
        start_mock(home, *SLOW)
        mock_command(home, "time", "--advance", "2h")
        assert child.wait(90) == 0, err.read_text()
        told = [json.loads(line) for line in out.read_text().splitlines()]
        later = [event.to_json() for event in place.events(handle.id)]
        place.close()
    finally:
        mock_command(home, "stop")
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    assert [event["message"] for event in told] == [event["message"] for event in later]
    assert told[-1]["data"] == {"status": "succeeded"}
    assert err.read_text().splitlines()[-1] == "connected again"
