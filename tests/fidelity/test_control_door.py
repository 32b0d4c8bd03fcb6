"""What a test can ask of the mock: faults, latency, time, quota, snapshots, a journal and its replay."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from maas_client.spec.rundir import read_json
from tests.mocking import ROOT, Mock, mock_command, running_mock, start_mock
from tests.wire import control, job_body, line_to, place_of, put_rows, wait_for

QUICK = ("--engine", "simulate", "--simulate-seconds", "0.05")
RECORDING = ROOT / "tests" / "fidelity" / "recordings" / "notebook.jsonl"


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with running_mock(tmp_path_factory.mktemp("mock"), *QUICK) as running:
        yield running


@pytest.fixture
def client(mock: Mock) -> Iterator[httpx.Client]:
    """A client of a mock in which nothing goes wrong yet."""
    with line_to(mock) as made:
        for method, path in (("POST", "reset"), ("DELETE", "journal")):
            answer = made.request(method, f"/__mock__/{path}", headers=control(mock))
            assert answer.status_code == 200
        yield made


def faults(client: httpx.Client, mock: Mock, *given: dict[str, Any]) -> None:
    answer = client.patch("/__mock__/controls", json={"faults": list(given)}, headers=control(mock))
    assert answer.status_code == 200, answer.text


def seen(client: httpx.Client, mock: Mock) -> list[dict[str, Any]]:
    text = client.get("/__mock__/journal?$top=50", headers=control(mock)).text
    return [json.loads(line) for line in text.splitlines()]


def test_the_control_door_is_closed_to_tokens_and_to_nobody(mock: Mock) -> None:
    with line_to(mock) as client:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": ""}):
            for method, path in (("GET", "status"), ("PATCH", "controls"), ("POST", "reset"),
                                 ("GET", "journal"), ("PUT", "snapshots/x")):  # fmt: skip
                assert (
                    client.request(method, f"/__mock__/{path}", headers=headers).status_code == 401
                )


def test_a_status_fault_happens_as_often_as_was_asked_and_where(
    client: httpx.Client, mock: Mock
) -> None:
    place = place_of(mock)
    fault = {"kind": "status", "status": 429, "path": "/data", "method": "GET", "times": 2,
             "skip": 1, "headers": {"Retry-After": "1"}, "message": "slow down"}  # fmt: skip
    faults(client, mock, fault)
    answers = [client.get(f"{place}/datastores") for _ in range(2)]  # `/data` is in `/datastores`
    answers += [client.get(f"{place}/data"), client.get(f"{place}/data")]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 200]
    assert answers[1].json()["error"] == {"code": "TooManyRequests", "message": "slow down"}
    assert answers[1].headers["retry-after"] == "1"
    assert client.get(f"{place}/jobs").status_code == 200
    fault = client.get("/__mock__/controls", headers=control(mock)).json()["faults"][0]
    assert (fault["id"], fault["fired"]) == ("fault-1", 2)


def test_a_lost_reply_is_work_done_and_a_lost_request_is_not(
    client: httpx.Client, mock: Mock
) -> None:
    place, uri = place_of(mock), put_rows(client, mock)
    faults(client, mock, {"kind": "lost-reply", "path": "/jobs/done$", "times": 1},
           {"kind": "lost-request", "path": "/jobs/not-done$", "times": 1})  # fmt: skip
    for name in ("done", "not-done"):
        with pytest.raises(httpx.RemoteProtocolError):
            client.put(f"{place}/jobs/{name}", json=job_body(uri))
    assert client.get(f"{place}/jobs/done").status_code == 200
    assert client.get(f"{place}/jobs/not-done").status_code == 404
    lost = [entry for entry in seen(client, mock) if entry.get("fault")]
    assert [(entry["fault"], entry["status"]) for entry in lost] == [
        ("lost-reply", 0),
        ("lost-request", 0),
    ]


def test_a_reply_can_be_cut_and_an_answer_can_be_slow(client: httpx.Client, mock: Mock) -> None:
    place = place_of(mock)
    faults(client, mock, {"kind": "cut", "bytes": 20, "path": "/jobs$", "times": 1},
           {"kind": "slow", "seconds": 0.3, "path": "/jobs$", "times": 1})  # fmt: skip
    with pytest.raises(httpx.RemoteProtocolError, match=r"incomplete|peer closed"):
        client.get(f"{place}/jobs")
    began = time.monotonic()
    assert client.get(f"{place}/jobs").status_code == 200
    assert time.monotonic() - began >= 0.3
    assert client.get(f"{place}/jobs").status_code == 200


def test_a_rate_is_a_share_of_the_requests_and_a_restart_keeps_what_was_asked(
    tmp_path: Path,
) -> None:
    with running_mock(tmp_path, *QUICK, "--seed", "5") as mock, line_to(mock) as client:
        faults(client, mock, {"kind": "status", "rate": 0.5})
        codes = [client.get(place_of(mock)).status_code for _ in range(200)]
        assert 60 < codes.count(503) < 140
        assert set(codes) == {200, 503}
    with running_mock(tmp_path, *QUICK, "--seed", "5") as mock, line_to(mock) as client:
        kept = client.get("/__mock__/controls", headers=control(mock)).json()["faults"][0]
        assert (kept["seen"], kept["fired"]) == (200, codes.count(503))


def test_answers_take_as_long_as_the_latency_says(client: httpx.Client, mock: Mock) -> None:
    place = place_of(mock)
    rules = [{"path": "/jobs", "median_ms": 200}]
    client.patch("/__mock__/controls", json={"latency": rules}, headers=control(mock))
    began = time.monotonic()
    client.get(f"{place}/jobs")
    assert 0.2 <= time.monotonic() - began < 5
    named = client.patch("/__mock__/controls", json={"latency": "far"}, headers=control(mock))
    assert named.json()["latency"][-1]["p99_ms"] > 1000
    client.patch("/__mock__/controls", json={"latency": "none"}, headers=control(mock))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capacity": 0}, "capacity"),
        ({"capacity": "many"}, "capacity"),
        ({"latency": "awful"}, "near"),
        ({"latency": [{"median_ms": -1}]}, "latency.0.median_ms"),
        ({"faults": [{"kind": "explode"}]}, "faults.0.kind"),
        ({"faults": [{"kind": "status", "path": "("}]}, "regular expression"),
        ({"faults": [{"kind": "status", "rate": 2}]}, "faults.0.rate"),
        ({"quota": {"cookies": 1}}, "quota.cookies"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_controls_that_make_no_sense_are_refused_and_change_nothing(
    client: httpx.Client, mock: Mock, change: dict[str, Any], words: str
) -> None:
    before = client.get("/__mock__/controls", headers=control(mock)).json()
    answer = client.patch("/__mock__/controls", json=change, headers=control(mock))
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert client.get("/__mock__/controls", headers=control(mock)).json() == before


def test_a_job_of_six_hours_is_over_in_seconds_and_its_times_agree(tmp_path: Path) -> None:
    options = ("--engine", "simulate", "--simulate-seconds", "21600")
    with running_mock(tmp_path, *options) as mock, line_to(mock) as client:
        began = time.monotonic()
        mock_command(mock.home, "time", "--scale", "7200")
        url = f"{place_of(mock)}/jobs/long"
        assert client.put(url, json=job_body(put_rows(client, mock))).status_code == 201
        job = wait_for(client, url)
        assert job["properties"]["status"] == "Completed"
        assert time.monotonic() - began < 30
        run = client.get(f"/history/v1.0{place_of(mock)}/runs/long/details").json()
        status = read_json(mock.home / "runs" / "long" / "status.json")
        events = (mock.home / "runs" / "long" / "events.jsonl").read_text().splitlines()
        times = [json.loads(line)["at"] for line in events]
        made, ended = (dt.datetime.fromisoformat(run[key]).timestamp()
                       for key in ("startTimeUtc", "endTimeUtc"))  # fmt: skip
        assert times == sorted(times)
        assert made <= status["started_at"] <= times[0]
        assert times[-1] <= status["ended_at"]
        assert ended == pytest.approx(status["ended_at"], abs=0.001)
        assert 21600 <= status["ended_at"] - status["started_at"] < 2 * 21600
        history = [dt.datetime.fromisoformat(at) for _, at in _history(mock, "long")]
        assert history == sorted(history)


def test_time_can_stand_and_jump_ahead_while_a_job_runs(tmp_path: Path) -> None:
    options = ("--engine", "simulate", "--simulate-seconds", "43200")
    with running_mock(tmp_path, *options) as mock, line_to(mock) as client:
        headers = control(mock)
        client.post("/__mock__/time", json={"scale": 0}, headers=headers)
        url = f"{place_of(mock)}/jobs/frozen"
        client.put(url, json=job_body(put_rows(client, mock)))
        stands = [client.get("/__mock__/time", headers=headers).json()["time"] for _ in range(2)]
        assert stands[0] == stands[1]
        for _ in range(60):  # each jump lets at most one more step happen
            client.post("/__mock__/time", json={"advance": 86400}, headers=headers)
            if client.get(url).json()["properties"]["status"] == "Completed":
                break
            time.sleep(0.2)
        assert wait_for(client, url)["properties"]["status"] == "Completed"
        for bad in ({"scale": -1}, {"scale": "fast"}, {"advance": -5}, {"scale": 1e12}):
            assert client.post("/__mock__/time", json=bad, headers=headers).status_code == 400


def _history(mock: Mock, name: str) -> list[list[str]]:
    import sqlite3

    with sqlite3.connect(mock.home / "store.sqlite") as db:
        row = db.execute(
            "SELECT body FROM documents WHERE kind='job' AND key=?", (name,)
        ).fetchone()
    db.close()
    return list(json.loads(row[0])["history"])


def test_a_snapshot_brings_everything_back(client: httpx.Client, mock: Mock) -> None:
    place, uri, headers = place_of(mock), put_rows(client, mock), control(mock)
    client.put(f"{place}/jobs/kept", json=job_body(uri))
    wait_for(client, f"{place}/jobs/kept")
    before = client.get(f"{place}/jobs/kept").json()
    assert client.put("/__mock__/snapshots/base", headers=headers).status_code == 201
    assert client.get("/__mock__/snapshots", headers=headers).json() == {"value": ["base"]}
    client.delete(f"{place}/jobs/kept")
    put_rows(client, mock, b"other\n")
    client.put(f"{place}/data/later/versions/1",
               json={"properties": {"dataUri": uri, "dataType": "uri_file"}})  # fmt: skip
    assert client.post("/__mock__/snapshots/base/restore", headers=headers).status_code == 200
    assert client.get(f"{place}/jobs/kept").json() == before
    assert client.get(f"{place}/data/later/versions/1").status_code == 404
    again = client.put(f"{place}/jobs/again", json=job_body(uri))  # the rows are the old ones
    assert again.status_code == 201
    wait_for(client, f"{place}/jobs/again")
    model = client.get(f"{place}/models/tuned/versions/1").json()["properties"]["modelUri"]
    store = client.get(f"{place}/datastores/workspaceblobstore").json()["properties"]
    path = model.partition("/paths/")[2]
    found = client.get(f"/mockacct.blob.core.local/{store['containerName']}/{path}MLmodel")
    assert found.status_code == 200
    assert client.delete("/__mock__/snapshots/base", headers=headers).status_code == 200
    for method, path in (
        ("POST", "base/restore"),
        ("DELETE", "base"),
        ("PUT", "..x%2F"),
        ("PUT", ".x"),
    ):
        answer = client.request(method, f"/__mock__/snapshots/{path}", headers=headers)
        assert answer.status_code in (400, 404), (path, answer.text)


def test_a_snapshot_knows_what_time_it_was(client: httpx.Client, mock: Mock) -> None:
    headers = control(mock)

    def hours(real: float) -> float:
        now = client.get("/__mock__/time", headers=headers).json()["time"]
        return (dt.datetime.fromisoformat(now).timestamp() - real) / 3600

    real = time.time()
    client.put("/__mock__/snapshots/real", headers=headers)
    client.post("/__mock__/time", json={"advance": 6 * 3600, "scale": 0}, headers=headers)
    client.put("/__mock__/snapshots/later", headers=headers)
    client.post("/__mock__/time", json={"advance": 36 * 3600, "scale": 9}, headers=headers)
    client.post("/__mock__/snapshots/later/restore", headers=headers)
    assert 6 <= hours(real) < 6.1
    assert client.get("/__mock__/time", headers=headers).json()["scale"] == 0
    client.post("/__mock__/snapshots/real/restore", headers=headers)
    assert 0 <= hours(real) < 0.1
    for name in ("real", "later"):
        client.delete(f"/__mock__/snapshots/{name}", headers=headers)


def test_time_ends_before_the_calendar_does(client: httpx.Client, mock: Mock) -> None:
    headers = control(mock)
    pace = {"real": time.time(), "virtual": 221_000_000_000.0, "scale": 1e6}  # the year 8973
    (mock.home / "clock.json").write_text(json.dumps(pace))
    body = {"advance": 366 * 86_400}
    answers = [client.post("/__mock__/time", json=body, headers=headers) for _ in range(40)]
    assert {answer.status_code for answer in answers} == {200, 400}
    pace["real"] -= 1e9  # it has gone on for days
    (mock.home / "clock.json").write_text(json.dumps(pace))
    assert client.get("/__mock__/time", headers=headers).json()["time"].startswith("9000-01-01")
    job = client.put(f"{place_of(mock)}/jobs/late", json=job_body(put_rows(client, mock)))
    assert job.status_code == 201


def test_a_snapshot_waits_for_quiet(tmp_path: Path) -> None:
    options = ("--engine", "simulate", "--simulate-seconds", "600")
    with running_mock(tmp_path, *options) as mock, line_to(mock) as client:
        client.put(f"{place_of(mock)}/jobs/busy", json=job_body(put_rows(client, mock)))
        answer = client.put("/__mock__/snapshots/x", headers=control(mock))
        assert answer.status_code == 409
        assert "busy" in answer.json()["error"]["message"]
        client.post("/__mock__/reset", headers=control(mock))


def test_a_seed_makes_the_same_keys_again(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        with running_mock(tmp_path / name, *QUICK, "--seed", "7") as mock, line_to(mock) as client:
            body = {
                "properties": {"modelSettings": {"modelId": "azureml://registries/azureml/models/Phi-3-mini-4k-instruct"}},
                "location": "eastus2", "sku": {"name": "Consumption"},
            }  # fmt: skip
            url = f"{place_of(mock)}/serverlessEndpoints/base"
            assert client.put(url, json=body).status_code == 201
            found.append(client.post(f"{url}/listKeys").json())
    assert found[0] == found[1]
    assert found[0]["primaryKey"] != found[0]["secondaryKey"]


def test_the_journal_has_every_call_and_no_secret(client: httpx.Client, mock: Mock) -> None:
    place = place_of(mock)
    client.delete("/__mock__/journal", headers=control(mock))
    put_rows(client, mock)
    sas = client.post(f"{place}/datastores/workspaceblobstore/listSecrets", json={}).json()[
        "sasToken"
    ]
    client.get(f"/mockacct.blob.core.local/box/x{sas}")
    body = {"client_id": "me", "client_secret": "my-own-secret", "scope": "x/.default"}
    given = client.post("/tenant/oauth2/v2.0/token", data=body).json()["access_token"]
    client.get(place, headers={"api-key": "another-secret"})
    client.get(place, headers={"x-api-key": "h-hidden", "Proxy-Authorization": "Basic h-hidden"})
    client.get(place, params={"access_token": "h-hidden", "api-key": "h-hidden", "$skip": "shown"})
    account = {
        "adminUserName": "shown",
        "adminUserPassword": "h-hidden",
        "clientSecret": "h-hidden",
    }
    client.put(f"{place}/computes/box", json={"properties": {"userAccountCredentials": account}})
    entries = seen(client, mock)
    assert [entry["n"] for entry in entries] == list(
        range(entries[0]["n"], entries[0]["n"] + len(entries))
    )
    put = next(entry for entry in entries if entry["method"] == "PUT")
    assert (put["status"], put["path"].rpartition("/")[2]) == (201, "rows.jsonl")
    assert json.loads(put["body"].splitlines()[0])["messages"]
    text = (mock.home / "journal.jsonl").read_text()
    signature = sas.partition("sig=")[2].partition("&")[0]
    for secret in (*read_json(mock.home / "secrets.json").values(), signature, given, "my-own-secret",
                   "another-secret", "h-hidden", client.headers["authorization"][7:]):  # fmt: skip
        assert secret not in text
    assert "skip=shown" in text.replace("%24", "$")
    assert (mock.home / "journal.jsonl").stat().st_mode & 0o077 == 0


def test_a_journal_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    with running_mock(tmp_path, *QUICK) as mock, line_to(mock) as client:
        client.get(place_of(mock))
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('{"n": 99, "meth')  # as a full disk or a lost machine leaves it
    with running_mock(tmp_path, *QUICK) as mock, line_to(mock) as client:
        client.get(place_of(mock))
        assert seen(client, mock)[-1]["path"] == place_of(mock)


def test_a_recorded_journal_gets_the_same_answers(tmp_path: Path) -> None:
    """The recording is the notebook's, by azure-ai-ml 1.35.2; recordings/README.md says how it was made."""
    with running_mock(tmp_path, "--engine", "simulate", "--simulate-seconds", "0.3") as mock:
        said = mock_command(mock.home, "replay", str(RECORDING)).stdout
        assert ", 0 differ" in said, said
        assert int(said.partition(" entries")[0].split()[-1]) > 100


def test_a_replay_finds_what_differs(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    put = next(entry for entry in lines if entry["method"] == "PUT" and "/data/" in entry["path"])
    put["status"] = 418
    (tmp_path / "changed.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines[: put["n"]])
    )
    with running_mock(tmp_path / "mock", *QUICK) as mock:
        words = ("mock", "--home", str(mock.home), "replay", str(tmp_path / "changed.jsonl"))
        done = subprocess.run([sys.executable, "-m", "local_runner", *words],
                              capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert f"#{put['n']} PUT" in done.stdout
    assert "status 418 is now 201" in done.stdout


def test_faults_are_replayed_too(tmp_path: Path) -> None:
    with running_mock(tmp_path / "mock", *QUICK) as mock, line_to(mock) as client:
        place = place_of(mock)
        faults(client, mock, {"kind": "status", "path": "/jobs/", "times": 1},
               {"kind": "lost-request", "path": "/jobs/", "times": 1},
               {"kind": "lost-reply", "path": "/data/", "times": 1},
               {"kind": "cut", "path": "/models", "times": 1})  # fmt: skip
        uri, lost = put_rows(client, mock), 0
        for method, path, body in (
            *[("PUT", "jobs/x", job_body(uri))] * 3,
            *[("PUT", "data/d/versions/1", {"properties": {"dataUri": uri, "dataType": "uri_file"}})] * 2,
            *[("GET", "models", None)] * 2,
        ):  # fmt: skip
            try:
                client.request(method, f"{place}/{path}", json=body)
            except httpx.RemoteProtocolError:
                lost += 1
        assert lost == 3
        wait_for(client, f"{place}/jobs/x")
        journal = tmp_path / "mine.jsonl"
        journal.write_bytes((mock.home / "journal.jsonl").read_bytes())
        client.post("/__mock__/reset", headers=control(mock))
        assert ", 0 left out, 0 differ" in mock_command(mock.home, "replay", str(journal)).stdout
        entries = [json.loads(line) for line in journal.read_text().splitlines()]
        entries = [entry for entry in entries if not entry["path"].startswith("/__mock__/")]
        journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        client.post("/__mock__/reset", headers=control(mock))
        words = ("mock", "--home", str(mock.home), "replay", str(journal), "--patience", "0.1")
        done = subprocess.run([sys.executable, "-m", "local_runner", *words],
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.stdout.count("the connection broke, as was asked for") == 3, done.stdout


def test_a_restarted_mock_is_where_it_was(tmp_path: Path) -> None:
    """An environment that `maas mock env` printed goes on working."""
    with running_mock(tmp_path, *QUICK) as mock:
        before = mock.state.url, mock.state.identity_endpoint
    with running_mock(tmp_path, *QUICK) as mock:
        assert (mock.state.url, mock.state.identity_endpoint) == before


def test_every_control_has_a_command(tmp_path: Path) -> None:
    mock = start_mock(tmp_path, *QUICK)
    try:
        said = mock_command(mock.home, "fault", "status", "--path", "/jobs", "--status", "429",
                            "--header", "Retry-After=2", "--once").stdout  # fmt: skip
        assert "status 429" in said
        with line_to(mock) as client:
            answer = client.get(f"{place_of(mock)}/jobs")
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        assert "happened 1 of 1 times" in mock_command(mock.home, "fault").stdout
        assert "nothing goes wrong" in mock_command(mock.home, "fault", "clear").stdout
        words = ("set", "--capacity", "3", "--quota", "jobs=2,endpoints=1", "--latency", "5")
        shown = json.loads(mock_command(mock.home, *words).stdout)
        assert (shown["capacity"], shown["quota"]["jobs"], shown["latency"][0]["median_ms"]) == (
            3,
            2,
            5,
        )
        assert "3600 times" in mock_command(mock.home, "time", "--scale", "3600").stdout
        assert "kept" in mock_command(mock.home, "snapshot", "one").stdout
        assert mock_command(mock.home, "snapshot").stdout == "one\n"
        assert "one" in mock_command(mock.home, "restore", "one").stdout
        assert "forgotten" in mock_command(mock.home, "snapshot", "one", "--drop").stdout
        last = mock_command(mock.home, "journal", "--last", "1").stdout
        assert json.loads(last)["path"].startswith("/__mock__/")
    finally:
        mock_command(mock.home, "stop")
