"""Watching a job: over lost connections, on a terminal, for programs, and interrupted."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stamina
from rich.console import Console

from maas_client import flow
from maas_client.cli import jobs as jobs_cli
from maas_client.cli.main import run_cli
from maas_client.cli.progress import Progress, clock, sparkline
from maas_client.cli.view import View
from maas_client.errors import AuthError, TargetError, UnreachableError
from maas_client.handle import JobHandle
from maas_client.jobs import Event, EventKind, Job, JobStatus

JOB = Job("support-agent-1", JobStatus.RUNNING, "phi", "mock", created_at=1000.0)
STEPS: tuple[tuple[EventKind, dict[str, Any]], ...] = (
    ("status", {"status": "running"}),
    ("log", {}),
    ("metric", {"step": 10, "max_steps": 40, "eval_loss": 3.0}),
    ("metric", {"step": 10, "max_steps": 40, "loss": 2.5, "tokens_per_second": 1234.5}),
    ("metric", {"step": 20, "max_steps": 40, "loss": 1.5, "tokens_per_second": 1200.0}),
    ("status", {"status": "succeeded"}),
)
EVENTS = [
    Event(number, 1000.0 + number, kind, f"[b]{kind} {number}", data)
    for number, (kind, data) in enumerate(STEPS, 1)
]


class Shaky:
    """A target whose job gets on by one event a look, and which does not answer now and then."""

    name = identity = "shaky"

    def __init__(self, *errors: Exception, status: JobStatus = JobStatus.SUCCEEDED) -> None:
        self.errors = list(errors)
        self.status = status
        self.there = 0

    def get(self, job_id: str) -> Job:
        self.there += 1
        ended = self.there > len(EVENTS)
        return replace(JOB, status=self.status if ended else JobStatus.RUNNING)

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        if self.there % 2 and self.errors:
            raise self.errors.pop(0)
        return iter(EVENTS[after : self.there])

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    stamina.set_testing(True, attempts=1000, cap=True)
    yield
    stamina.set_testing(False)


def lost() -> UnreachableError:
    return UnreachableError("target shaky does not answer: reset by peer")


def test_no_event_is_missed_or_told_twice_over_lost_connections() -> None:
    heard: list[TargetError | None] = []
    target = Shaky(lost(), TargetError("busy", status=503), lost())
    events = list(JobHandle(target, "x").follow(on_line=heard.append))  # type: ignore[arg-type]
    assert events == EVENTS
    assert len([error for error in heard if error is not None]) == 3
    assert heard[-1] is None


def test_following_goes_on_after_the_last_event_that_is_known() -> None:
    assert list(JobHandle(Shaky(lost()), "x").follow(after=4)) == EVENTS[4:]  # type: ignore[arg-type]


def test_what_will_not_pass_is_raised_at_once() -> None:
    with pytest.raises(AuthError):
        list(JobHandle(Shaky(AuthError("no", status=401)), "x").follow())  # type: ignore[arg-type]


def follow(target: Shaky, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(jobs_cli, "open_place", lambda _: target)
    return run_cli(["follow", "x", "--target", "shaky", *words])


def test_json_is_one_event_a_line_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(Shaky(lost()), monkeypatch, "--json") == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [1, 2, 3, 4, 5, 6]
    assert "reconnecting: target shaky does not answer" in err
    assert "connected again" in err


@pytest.mark.parametrize(
    ("status", "code"),
    [(JobStatus.SUCCEEDED, 0), (JobStatus.FAILED, 1), (JobStatus.CANCELLED, 1)],
)
def test_the_exit_code_is_the_jobs(
    status: JobStatus, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert follow(Shaky(status=status), monkeypatch) == code


def test_a_pipe_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(Shaky(), monkeypatch) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[b]log 2" in out  # what looks like markup is text
    assert out.endswith("job support-agent-1 succeeded\n")


@pytest.mark.parametrize(
    ("words", "command"),
    [((), "maas follow x --target shaky\n"), (("--json",), "--target shaky --json --after 4\n")],
)
def test_ctrl_c_ends_with_the_command_that_picks_it_up(
    words: tuple[str, ...],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = Shaky()
    get = target.get

    def interrupted(job_id: str) -> Job:
        if target.there == 4:
            raise KeyboardInterrupt
        return get(job_id)

    target.there = 0
    monkeypatch.setattr(target, "get", interrupted)
    assert follow(target, monkeypatch, *words) == 130
    assert capsys.readouterr().err.endswith(command)


def test_ctrl_c_in_a_real_process_leaves_the_job_alone(job_folder: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "maas_client", "run", "job.yaml", "--simulate", "--name", "one"]
    subprocess.run(run, cwd=job_folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    status = job_folder / "runs" / "one" / "status.json"
    raw = json.loads(status.read_text()) | {"status": "running", "ended_at": None}
    with (job_folder / "runs" / "one" / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as its trainer would
        status.write_text(json.dumps(raw))
        command = [sys.executable, "-m", "maas_client", "follow", "one", "--json"]
        child = subprocess.Popen(
            command,
            cwd=job_folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # communicate() would leave out what a buffered readline() took along
        )
        assert child.stdout
        try:
            first = child.stdout.readline()
            child.send_signal(signal.SIGINT)
            rest, said = child.communicate(timeout=60)
        finally:
            child.kill()
    out, err = (first + rest).decode(), said.decode()
    assert child.returncode == 130
    told = [json.loads(line)["seq"] for line in out.splitlines()]
    assert told == list(range(1, len(told) + 1))
    assert "maas follow one --target local --json --after" in err
    assert "Traceback" not in err


def screen(width: int, *events: Event, trouble: str = "", job: Job = JOB) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    view = View(job, console)
    for event in events:
        view.progress.take(event)
    view.trouble(trouble)
    console.print(view._panel())
    return out.getvalue().replace("\x1b[?25l", "")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_view_says_all_there_is_in_any_width(width: int) -> None:
    shown = screen(width, *EVENTS, trouble="reconnecting: no answer " * 9)
    for word in ("support-agent-1", "on mock", "step 20/40", "50 %", "1.5000", "from 2.5000",
                 "3.0000", "1,200 tokens/s", "elapsed 0:06", "succeeded", "reconnecting"):  # fmt: skip
        assert word in shown, word
    assert max(map(len, shown.splitlines())) <= width
    assert "█▁" in shown


def test_the_view_of_a_job_that_waits_and_of_one_that_is_simulated() -> None:
    assert "queued" in screen(80)
    assert "simulated" in screen(80, *EVENTS, job=replace(JOB, simulated=True))


def test_log_lines_scroll_by_above_the_view() -> None:
    out = io.StringIO()
    view = View(JOB, Console(file=out, width=80, force_terminal=True, color_system=None))
    view.start()
    for event in EVENTS:
        view.event(event)
    view.stop()
    assert "[b]log 2" in out.getvalue()


def test_a_sparkline_is_as_wide_as_asked_and_shows_the_fall() -> None:
    assert sparkline([3, 2, 1], 10) == "█▅▁"
    assert sparkline([3, float("nan"), 2, float("inf"), 1], 10) == "█▅▁"
    assert sparkline([2.0, 2.0], 10) == "▁▁"
    assert sparkline([], 10) == sparkline([1.0], 0) == ""
    falling = sparkline([float(n) for n in range(1000, 0, -1)], 8)
    assert falling == "█▇▆▅▄▃▂▁"


def test_the_time_left_is_the_trainers_word_or_the_pace_since_we_look() -> None:
    said = Progress(JOB)
    data = {"step": 1, "max_steps": 9, "loss": 1.0, "seconds_left": 70}
    said.take(Event(1, 1010.0, "metric", "", data))
    assert said.seconds_left(1020.0) == 60
    paced = Progress(JOB)
    for at, step in ((1010.0, 5), (1010.0, 10), (1020.0, 20)):  # two came at once: no pace
        paced.take(Event(1, at, "metric", "", {"step": step, "max_steps": 40, "loss": 1.0}))
    assert paced.seconds_left(1020.0) == 20
    assert Progress(JOB).seconds_left(0.0) is None
    assert (clock(65), clock(3665), clock(-1)) == ("1:05", "1:01:05", "0:00")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed_for_each_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["completion", shell]) == 0
    assert "_MAAS_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "answer"), [("maas comp", "completion"), ("maas follow x --target lo", "local")]
)
def test_the_shell_completes_commands_and_targets(line: str, answer: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "_MAAS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "maas_client"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [answer]


def test_a_job_that_is_found_is_said_to_be(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # a real runner takes real time
    monkeypatch.chdir(job_folder)
    for words in (["run", "job.yaml", "--simulate"], ["run", "job.yaml", "--simulate"]):
        assert run_cli(words) == 0
    assert "--new makes another" in capsys.readouterr().err
    assert len(list((job_folder / "runs").iterdir())) == 1
    assert run_cli(["run", "job.yaml", "--simulate", "--new"]) == 0
    assert len(list((job_folder / "runs").iterdir())) == 2
    assert flow.open_target("local").list()[0].status is JobStatus.SUCCEEDED
