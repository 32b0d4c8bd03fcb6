"""A run's files: whole or absent, numbered without gaps, locked by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maas_client.errors import RunDirError
from maas_client.jobs import JobStatus
from maas_client.spec.rundir import EventWriter, RunDir, RunStatus, write_whole


def test_events_are_numbered_without_gaps_over_restarts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    EventWriter(run).write("log", "one")
    EventWriter(run).write("metric", "two", {"step": 1, "loss": 2.0})
    assert [(event.seq, event.message) for event in run.events()] == [(1, "one"), (2, "two")]
    assert [event.seq for event in run.events(after=1)] == [2]
    assert run.metrics()[0]["loss"] == 2.0


def test_a_half_written_line_is_ignored_and_then_cut_off(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    EventWriter(run).write("log", "one")
    with run.events_file.open("a") as stream:
        stream.write('{"seq": 2, "at": 1.0, "ki')
    assert [event.seq for event in run.events()] == [1]
    EventWriter(run).write("log", "two")
    assert [event.message for event in run.events()] == ["one", "two"]


def test_a_status_is_whole_or_absent(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.read_status() is None
    run.write_status(RunStatus(JobStatus.RUNNING, started_at=1.0))
    assert run.read_status() == RunStatus(JobStatus.RUNNING, started_at=1.0)
    run.status_file.write_text('{"status": "run')
    with pytest.raises(RunDirError):
        run.read_status()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    write_whole(file, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_one_process_at_a_time_holds_a_run_and_its_death_lets_go(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from maas_client.spec.rundir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert run.is_locked()
        with pytest.raises(RunDirError, match=f"process {child.pid}"), run.locked():
            pass
        child.kill()
    assert not run.is_locked()
    with run.locked():
        pass
