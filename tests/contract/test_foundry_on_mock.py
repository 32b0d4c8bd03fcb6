"""The foundry target against the mock's OpenAI door: the whole journey, uploads that are killed, secrets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from maas_client import flow
from maas_client.cli.main import run_cli
from maas_client.errors import AmbiguousError, AuthError, NotFoundError
from maas_client.jobs import JobStatus, Transfer
from maas_client.plan import Plan
from maas_client.settings import FoundrySettings, find_target
from maas_client.spec.rundir import read_json
from maas_client.targets.foundry import FoundryTarget
from tests.conftest import JOB, ROW
from tests.fake_openai import planned
from tests.mocking import Mock, mock_command, running_mock

KNOBS = 'num_train_epochs: "3"\n  learning_rate: "0.00002"'
TUNED = JOB.replace('learning_rate: "0.00002"', KNOBS)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    """A mock whose jobs take a moment, so that they can be paused."""
    home = tmp_path_factory.mktemp("mock")
    options = ("--engine", "simulate", "--simulate-seconds", "3", "--capacity", "4")
    with running_mock(home, *options) as running:
        yield running


@pytest.fixture
def place(mock: Mock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FoundryTarget]:
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MAAS_MOCK_HOME", str(mock.home))
    made = flow.open_target("mock-foundry")
    assert isinstance(made, FoundryTarget)
    yield made
    made.close()


def write_job(folder: Path, *, text: str = TUNED, rows: int = 12) -> Path:
    lines = [ROW.replace("tap", f"tap {number}") for number in range(rows)]
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "job.yaml").write_text(text)
    return folder / "job.yaml"


def ready(place: FoundryTarget, folder: Path, **more: Any) -> Plan:
    return planned(write_job(folder, **more), place)


def until(look: Callable[[], Any]) -> Any:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_the_whole_journey(place: FoundryTarget, tmp_path: Path) -> None:
    handle = flow.submit(ready(place, tmp_path), place)
    until(lambda: place.get(handle.id).status is JobStatus.RUNNING)
    place.pause(handle.id)
    until(lambda: place.get(handle.id).status is JobStatus.PAUSED)
    place.resume(handle.id)
    events = list(handle.follow())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    told = [event.data["status"] for event in events if event.kind == "status"]
    assert told == ["running", "paused", "queued", "running", "succeeded"]
    losses = [event.data["loss"] for event in events if "loss" in event.data]
    assert losses[-1] < losses[0]
    job = place.get(handle.id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.output_model is not None
    assert job.output_model.startswith("ft:phi-3-mini-4k-instruct:")

    run = flow.collect(handle, tmp_path / "run")
    steps = [row["step"] for row in run.metrics() if "loss" in row]
    assert steps == sorted(set(steps))
    assert steps[-1] == 36
    kept = read_json(run.path / "checkpoints.json")["checkpoints"]
    assert [entry["step"] for entry in kept] == [12, 24, 36]
    assert read_json(run.plan_file)["hyperparameters"]["num_train_epochs"]["value"] == 3
    assert set(read_json(run.manifest_file)["outputs"]) >= {"results.csv", "job.yaml"}
    assert not run.adapter.exists()  # the wire hands out no weights, unless it is told to

    endpoint = flow.deploy(job.output_model, place)
    assert (endpoint.state, endpoint.model) == ("online", job.output_model)
    assert endpoint.name in [found.name for found in place.endpoints()]
    assert all(place.keys(endpoint.name))
    line = flow.open_chat(endpoint.name, place)
    whole = line.ask("Where is the tap?", temperature=0.0)
    assert whole.text
    assert "".join(line.stream("Where is the tap?")).strip() == whole.text.strip()
    line.close()
    place.undeploy(endpoint.name)
    with pytest.raises(NotFoundError):
        place.endpoint(endpoint.name)
    line = flow.open_chat(endpoint.name, place)
    with pytest.raises(NotFoundError):
        line.ask("Still there?")
    line.close()


def test_the_key_of_a_submission_is_found_by_the_service(
    place: FoundryTarget, tmp_path: Path
) -> None:
    plan = ready(place, tmp_path, text=TUNED.replace("task:", "name: sought\ntask:"))
    training = place.upload_file(Path(plan.training.path))
    for key in ("one", "two", "three"):
        body = {
            "model": "Phi-3-mini-4k-instruct",
            "training_file": training.id,
            "metadata": {"maas_key": key},
        }
        place._line.post("/fine_tuning/jobs", body, again="never")
    found = place.find("two")
    assert found is not None
    assert place._raw(found.id)["metadata"]["maas_key"] == "two"
    assert place.find("four") is None
    for job in place.list():
        place.cancel(job.id)


def test_a_new_job_whose_answer_is_lost_is_one_job(
    mock: Mock, place: FoundryTarget, tmp_path: Path
) -> None:
    plan = ready(place, tmp_path, text=TUNED.replace("task:", "name: lost\ntask:"))
    before = len(place.list(limit=1000))
    fault = ("lost-reply", "--method", "POST", "--path", "fine_tuning/jobs", "--once")
    mock_command(mock.home, "fault", *fault)
    with pytest.raises(AmbiguousError, match="jobs list"):
        place.submit(plan)
    jobs = place.list(limit=1000)
    assert len(jobs) == before + 1
    assert jobs[0].display_name == "lost"


def test_busy_and_broken_moments_are_outlived(mock: Mock, place: FoundryTarget) -> None:
    for words in (("status", "--status", "429", "--header", "Retry-After=0"), ("lost-reply",)):
        mock_command(mock.home, "fault", *words, "--method", "GET", "--path", "files", "--once")
    place.files()


def test_an_identical_file_is_there_once(place: FoundryTarget, tmp_path: Path) -> None:
    file = write_job(tmp_path).with_name("train.jsonl")
    before = len(place.files(limit=1000))
    first = place.upload_file(file)
    assert place.upload_file(file) == first
    assert len(place.files(limit=1000)) == before + 1
    place.delete_file(first.id)
    assert place.upload_file(file).id != first.id


_UPLOAD = """\
import sys
from pathlib import Path
from maas_client import flow
place = flow.open_target("mock-foundry")
place.on_transfer = lambda transfer: print(transfer.sent, flush=True)
print(place.upload_file(Path(sys.argv[1])).id)
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def long_rows(file: Path, size: int) -> None:
    """Good rows, of so many bytes and some."""
    row = ROW.replace("Left.", "Left. " * 200_000).encode() + b"\n"
    with file.open("wb") as stream:
        for number in range(size // len(row) + 1):
            stream.write(row.replace(b"tap", b"tap %d" % number))


def test_a_killed_upload_goes_on_where_it_stopped(place: FoundryTarget, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    long_rows(file, 120 * MIB)
    child = subprocess.Popen(
        [sys.executable, "-c", _UPLOAD, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    records = Path(os.environ["MAAS_HOME"]) / "uploads"

    def parts() -> int:
        return sum(len(read_json(record)["parts"]) for record in records.glob("*.json"))

    until(parts)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    there = parts()
    assert there
    told: list[Transfer] = []
    place.on_transfer = told.append
    stored = place.upload_file(file)
    assert told[0].note == "goes on"
    assert told[0].sent >= min(there * 16 * MIB, file.stat().st_size)
    assert stored.bytes == file.stat().st_size
    assert place.upload_file(file) == stored
    place.delete_file(stored.id)


class _Drain(BaseHTTPRequestHandler):
    """A service that takes any upload and keeps none: what the client needs is all there is to see."""

    protocol_version = "HTTP/1.1"
    size = 0

    def do_POST(self) -> None:
        left = int(self.headers["content-length"])
        while left:
            left -= len(self.rfile.read(min(left, MIB)))
        file = {"id": "file-1", "bytes": self.size, "filename": "x", "status": "processed"}
        answer = json.dumps({"id": "some", "status": "completed", "file": file}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_an_upload_takes_the_same_memory_however_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Drain)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    used = []
    try:
        for size in (70 * MIB, 300 * MIB):
            file = tmp_path / f"{size}.jsonl"
            with file.open("wb") as stream:
                stream.truncate(size)
            _Drain.size = size
            command = [sys.executable, "-c", _UPLOAD.replace("mock-foundry", "foundry"), str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            used.append(int(done.stdout.split()[-1]))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert abs(used[1] - used[0]) < 30, used


@pytest.mark.usefixtures("place")
def test_a_wrong_key_is_refused_by_the_door() -> None:
    settings = find_target("mock-foundry")
    assert isinstance(settings, FoundrySettings)
    stranger = FoundryTarget(
        FoundrySettings("x", settings.endpoint, ca=settings.ca, api_key="not-the-right-key")
    )
    with pytest.raises(AuthError) as caught:
        stranger.list()
    assert caught.value.request_id
    assert "not-the-right-key" not in str(caught.value)
    stranger.close()


@pytest.mark.usefixtures("place")
def test_the_command_line_does_it_all_and_says_no_secret(
    mock: Mock, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_job(tmp_path, text=TUNED.replace("task:", "description: by hand\ntask:"))
    to = ("--target", "mock-foundry")
    said: list[str] = []

    def maas(*words: str, code: int = 0) -> Any:
        assert run_cli([*words, *to, "--json"]) == code, capfd.readouterr()
        out, err = capfd.readouterr()
        said.extend((out, err))
        return json.loads(out.splitlines()[-1]), err

    stored, progress = maas("files", "upload", str(tmp_path / "train.jsonl"))
    assert json.loads(progress.splitlines()[-1])["upload"]["sent"] == stored["bytes"]
    planned_values = maas("plan", str(file))[0]["hyperparameters"]
    assert "n_epochs 3" in planned_values["num_train_epochs"]["note"]
    job, _ = maas("submit", str(file))
    until(lambda: maas("jobs", "show", job["id"])[0]["status"] == "running")
    maas("jobs", "pause", job["id"])
    until(lambda: maas("jobs", "show", job["id"])[0]["status"] == "paused")
    maas("jobs", "resume", job["id"])
    assert maas("jobs", "follow", job["id"])[0]["data"]["status"] == "succeeded"
    assert [entry["step"] for entry in maas("jobs", "checkpoints", job["id"])[0]] == [12, 24, 36]
    assert job["id"] in [entry["id"] for entry in maas("jobs", "list")[0]]
    maas("jobs", "download", job["id"], "--out", str(tmp_path / "run"))
    assert maas("files", "list")[0][0]["purpose"] == "fine-tune-results"
    maas("files", "delete", stored["id"])
    maas("files", "delete", stored["id"], code=1)
    assert run_cli(["targets", "list", "--json"]) == run_cli(["targets", "list"]) == 0
    assert run_cli(["targets", "check", "mock-foundry"]) == 0
    assert run_cli(["plan", str(file), *to]) == 0
    said.extend(capfd.readouterr())
    secrets = read_json(mock.home / "secrets.json").values()
    kept = [
        found.read_bytes().decode(errors="replace")
        for found in tmp_path.rglob("*")
        if found.is_file()
    ]
    journal = (mock.home / "journal.jsonl").read_text()
    assert any(job["id"] in text for text in said)
    assert job["id"] in journal
    for secret in secrets:
        assert secret not in "".join([*said, *kept, journal])
