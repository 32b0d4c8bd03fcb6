"""The mock's worker and chat with an engine of a test's own: a script that does as the job's name says."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from local_runner.clock import Clock
from local_runner.mock_server import credentials
from local_runner.mock_server.chat import ChildSpeaker
from local_runner.mock_server.control.controls import Controls, Settings
from local_runner.mock_server.control.journal import Journal
from local_runner.mock_server.dice import Dice
from local_runner.mock_server.doors import job_door, model_source, served
from local_runner.mock_server.doors.table import make_app, make_router
from local_runner.mock_server.engine import Engine
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.lifecycle import move
from local_runner.mock_server.storage.blobs import BlobStore
from local_runner.mock_server.store import Body, Store
from local_runner.mock_server.twin import Site, Twin
from local_runner.mock_server.wire import Call, Reply
from local_runner.mock_server.worker import Worker
from maas_client.spec.rundir import RunDir
from tests.conftest import ROW

STUB = """
import json, sys, time
from pathlib import Path
from maas_client.jobs import JobStatus
from maas_client.spec.rundir import EventWriter, RunDir, RunStatus, read_json, write_whole

def say(**words):
    print(json.dumps(words), flush=True)

verb = sys.argv[1]
if verb == "base":
    say(source="stub", label="a stub", digest="0")
elif verb == "answer":
    if sys.argv[-1] == "Phi-4-mini-instruct":
        say(error={"message": "these weights are broken"})
        sys.exit(1)
    say(ready=True)
    for line in sys.stdin:
        number = json.loads(line)["id"]
        if "die" in line:
            say(id=number, delta="I am")
            sys.exit(1)
        for word in ("one", " two"):
            say(id=number, delta=word)
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        say(id=number, done=True, finish_reason="stop", usage=usage)
else:
    run = RunDir(Path(sys.argv[-1]))
    name = read_json(run.plan_file)["job"]["name"]
    with run.locked():
        writer = EventWriter(run)
        if name == "dies":
            sys.exit("no luck")
        if name == "gets-on" and len(run.metrics()) < 7:
            writer.write("metric", "a step", {"step": len(run.metrics()) + 1, "loss": 1.0})
            sys.exit("killed")
        while name == "slow" and not run.cancel_file.exists():
            time.sleep(0.01)
        rows = (run.path / "data" / "training_data.jsonl").read_bytes()
        write_whole(run.adapter / "adapter_model.safetensors", rows)
        end = JobStatus.CANCELLED if run.cancel_file.exists() else JobStatus.SUCCEEDED
        writer.write("status", str(end), {"status": str(end)})
        run.write_status(RunStatus(end, base="a stub"))
"""
MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"


@dataclass
class Service:
    """A twin without a network: doors are called, and the worker is turned by hand."""

    twin: Twin
    worker: Worker
    journal: Journal

    def call(self, method: str, path: str, body: Any = None, **query: str) -> Reply:
        path = path.replace("{W}", self.twin.site.workspace_path)
        route, params = make_router(self.twin, self.worker, self.journal).find(method, path)
        raw = b"" if body is None else json.dumps(body).encode()
        return route.handler(Call(method, path, params, query, {}, raw))

    def submit(self, name: str, *, rows: str = ROW, output: str = "tuned") -> None:
        self.twin.blobs.put(self.twin.site.blob_container, "rows.jsonl", f"{rows}\n".encode())
        data = {"uri": "azureml://datastores/workspaceblobstore/paths/rows.jsonl"}
        details = {"modelProvider": "Custom", "taskType": "ChatCompletion", "model": {"uri": MODEL}}
        body = {
            "jobType": "FineTuning",
            "fineTuningDetails": details | {"trainingData": data},
            "outputs": {"registered_model": {"assetName": output}},
        }
        assert self.call("PUT", f"{{W}}/jobs/{name}", {"properties": body}).status == 201

    def job(self, name: str) -> Body:
        found = self.twin.store.get("job", name)
        assert found is not None
        return found

    def work_until(self, done: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, [doc.body for doc in self.twin.store.list("job")]
            self.worker.turn()
            time.sleep(0.01)

    def work_until_all_ended(self) -> None:
        ended = ("Completed", "Failed", "Canceled")
        jobs = self.twin.store.list
        self.work_until(lambda: all(doc.body["state"] in ended for doc in jobs("job")))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    engine = Engine("train", runner=(sys.executable, str(script)))
    store = Store(tmp_path / "store.sqlite")
    speaker = ChildSpeaker(engine, tmp_path / "answer.log")
    site = Site("https://127.0.0.1:1", tmp_path)
    secrets = credentials.ensure(tmp_path / "secrets.json")
    twin = Twin(
        site,
        store,
        BlobStore(tmp_path / "blobs", store),
        secrets,
        engine,
        speaker,
        Clock(),
        Dice(store),
        Controls(store, Settings()),
    )
    journal = Journal(tmp_path / "journal.jsonl", [])
    yield Service(twin, Worker(twin), journal)
    journal.close()
    speaker.close()
    store.close()


def test_an_engine_that_never_gets_on_is_given_up_and_one_that_does_is_not(
    service: Service,
) -> None:
    service.submit("dies")
    service.submit("gets-on")
    service.work_until_all_ended()
    assert service.job("dies")["state"] == "Failed"
    assert "no luck" in service.job("dies")["error"]
    assert (service.job("gets-on")["state"], service.job("gets-on")["starts"]) == ("Completed", 8)


def test_one_jobs_trouble_does_not_stop_the_queue(service: Service) -> None:
    service.twin.controls.change({"capacity": 2})
    service.submit("stuck")
    (service.twin.site.home / "runs" / "stuck" / "status.json").write_text("[]")  # unreadable
    service.submit("fine")
    service.work_until(lambda: service.job("fine")["state"] == "Completed")


def test_what_was_checked_is_trained_though_the_blob_is_overwritten_or_gone(
    service: Service,
) -> None:
    other = ROW.replace("tap", "door")
    service.submit("slow")
    service.submit("waits", rows=other)
    store = service.twin.blobs
    store.put(service.twin.site.blob_container, "rows.jsonl", b"rubbish")
    blob = store.get(service.twin.site.blob_container, "rows.jsonl")
    assert blob is not None
    store.delete(blob)
    service.call("POST", "{W}/jobs/slow/cancel")
    service.work_until_all_ended()
    run = RunDir(service.twin.site.home / "runs" / "waits")
    assert service.job("waits")["state"] == "Completed"
    assert (run.adapter / "adapter_model.safetensors").read_text() == f"{other}\n"


def test_a_deleted_jobs_name_trains_anew_and_its_model_stays(service: Service) -> None:
    service.submit("again")
    service.work_until_all_ended()
    assert service.call("DELETE", "{W}/jobs/again").status == 200
    other = ROW.replace("tap", "lamp")
    service.submit("again", rows=other)
    service.work_until_all_ended()
    models = {doc.key: Path(doc.body["adapter"]) for doc in service.twin.store.list("model")}
    texts = {key: (path / "adapter_model.safetensors").read_text() for key, path in models.items()}
    assert texts == {"tuned/1": f"{ROW}\n", "tuned/2": f"{other}\n"}


def test_a_refused_job_leaves_no_folder(service: Service) -> None:
    with pytest.raises(Exception, match="rows are bad"):
        service.submit("bad", rows='{"mesages": []}')
    assert list((service.twin.site.home / "runs").iterdir()) == []


def test_a_cancellation_between_look_and_start_is_not_lost(service: Service) -> None:
    service.submit("slow")
    stale = service.job("slow")
    service.call("POST", "{W}/jobs/slow/cancel")
    moved = move(service.twin, stale, "Running", only=("Queued",))
    assert moved["state"] == "CancelRequested"
    service.work_until_all_ended()
    assert (service.job("slow")["state"], service.job("slow").get("starts")) == ("Canceled", None)


def test_a_running_job_is_cancelled_and_the_next_one_runs(service: Service) -> None:
    service.submit("slow")
    service.submit("next")
    service.work_until(lambda: service.job("slow").get("starts") == 1)
    assert service.job("next")["state"] == "Queued"
    service.call("POST", "{W}/jobs/slow/cancel")
    service.work_until_all_ended()
    assert (service.job("slow")["state"], service.job("next")["state"]) == ("Canceled", "Completed")


def deploy(service: Service, name: str, model: str = "Phi-3-mini-4k-instruct") -> dict[str, str]:
    settings = {"modelId": f"azureml://registries/azureml/models/{model}"}
    service.call(
        "PUT", f"{{W}}/serverlessEndpoints/{name}", {"properties": {"modelSettings": settings}}
    )
    shown: Any = service.call("POST", f"{{W}}/serverlessEndpoints/{name}/listKeys").body
    return {"api-key": shown["primaryKey"]}


def state(service: Service, name: str) -> tuple[str, str]:
    shown: Any = service.call("GET", f"{{W}}/serverlessEndpoints/{name}").body
    return shown["properties"]["endpointState"], shown["properties"]["provisioningState"]


def wait_for_state(service: Service, name: str, wanted: str) -> None:
    end = time.monotonic() + 30
    while state(service, name)[0] != wanted:
        assert time.monotonic() < end, state(service, name)
        time.sleep(0.01)


def test_an_endpoint_stays_online_whatever_model_is_loaded(service: Service) -> None:
    deploy(service, "first")
    wait_for_state(service, "first", "Online")
    deploy(service, "second", "Phi-3-mini-128k-instruct")
    wait_for_state(service, "second", "Online")
    assert state(service, "first") == ("Online", "Succeeded")
    service.twin.speaker.close()  # as after a restart
    assert state(service, "second") == ("Online", "Succeeded")


def test_an_endpoint_whose_weights_do_not_load_fails_and_says_why(service: Service) -> None:
    deploy(service, "broken", "Phi-4-mini-instruct")
    wait_for_state(service, "broken", "CreationFailed")
    assert state(service, "broken") == ("CreationFailed", "Failed")
    operation = service.twin.store.list("operation")[0].key
    url = (
        f"/subscriptions/x/providers/Microsoft.MachineLearningServices/locations/eastus2"
        f"/mfeOperationsStatus/{operation}"
    )
    body: Any = service.call("GET", url).body
    assert body["status"] == "Failed"
    assert "these weights are broken" in body["error"]["message"]


def turns(text: str = "Hello?", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def test_many_questions_at_once_neither_lock_up_nor_block_the_other_doors(
    service: Service,
) -> None:
    """Whoever streams needs a thread for each piece while all the others wait for the model."""
    headers = deploy(service, "busy")
    token, _ = service.twin.secrets.token("x")
    texts: list[str] = []

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        body = turns(stream=number % 2 == 0)
        answer = await client.post("/serverless/busy/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
        texts.append(answer.text)

    async def crowd() -> None:
        transport = httpx.ASGITransport(make_app(service.twin, service.worker, service.journal))
        async with httpx.AsyncClient(transport=transport, base_url="http://mock") as client:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for number in range(100):
                        group.start_soon(ask, client, number)
                    await anyio.sleep(0)
                    answer = await client.get(
                        service.twin.site.workspace_path,
                        headers={"Authorization": f"Bearer {token}"},
                    )
                    assert answer.status_code == 200
                    assert len(texts) < 100  # the door answered while questions waited

    anyio.run(crowd)
    assert len(texts) == 100
    assert all("one" in text and " two" in text for text in texts)


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_dies_in_the_middle_is_an_error_and_the_next_question_is_answered(
    service: Service, *, stream: bool
) -> None:
    headers = deploy(service, "mortal")

    async def talk() -> list[httpx.Response]:
        transport = httpx.ASGITransport(make_app(service.twin, service.worker, service.journal))
        async with httpx.AsyncClient(transport=transport, base_url="http://mock") as client:
            url = "/serverless/mortal/v1/chat/completions"
            bodies = (turns("die", stream=stream), turns())
            return [await client.post(url, json=body, headers=headers) for body in bodies]

    died, answered = anyio.run(talk)
    assert died.status_code == (200 if stream else 503)
    assert '"error"' in died.text
    assert answered.json()["choices"][0]["message"]["content"] == "one two"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (turns(max_tokens=None, temperature=None, top_p=None, stop=None, seed=None, n=None), 200),
        (turns(stream_options="x"), 200),
        (turns(stop=["a", "b"]), 200),
        (turns(n=2), 400),
        (turns(stop=[1]), 400),
        (turns(stop=list("abcde")), 400),
        (turns(temperature="hot"), 400),
        (turns(max_tokens=0), 400),
        ({"messages": []}, 400),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400),
    ],
)
def test_a_question_is_checked_and_null_is_absent(
    service: Service, body: dict[str, Any], status: int
) -> None:
    headers = deploy(service, "strict")
    route, params = make_router(service.twin, service.worker, service.journal).find(
        "POST", "/serverless/strict/chat/completions"
    )
    raw = json.dumps(body).encode()
    reply = route.handler(Call("POST", "/", params, {}, headers, raw))
    assert reply.status == status, reply.body


def test_a_full_disk_is_said_and_what_only_reads_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, _ = service.twin.secrets.token("x")
    place, database = service.twin.site.workspace_path, service.twin.store._db
    body = {"properties": {"dataUri": "azureml://x/y", "dataType": "uri_file"}}
    service.twin.controls.change({"faults": [{"kind": "slow", "seconds": 0, "path": "/models"}]})
    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(*_: object) -> int:
        raise full

    async def talk() -> list[httpx.Response]:
        transport = httpx.ASGITransport(make_app(service.twin, service.worker, service.journal))
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://mock", headers=headers
        ) as client:
            pages = database.execute("PRAGMA page_count").fetchone()[0]
            database.execute(f"PRAGMA max_page_count={pages}")
            monkeypatch.setattr("local_runner.mock_server.control.journal.os.write", fails)
            big = body | {"properties": body["properties"] | {"description": "x" * 100_000}}
            answers = [await client.get(place)]
            answers.append(await client.put(f"{place}/data/d/versions/1", json=big))
            monkeypatch.setattr(service.twin.store, "put", fails)
            answers.append(await client.get(f"{place}/models"))
            monkeypatch.undo()
            database.execute("PRAGMA max_page_count=100000")
            answers.append(await client.put(f"{place}/data/d/versions/1", json=big))
            return answers

    answers = anyio.run(talk)
    assert [answer.status_code for answer in answers] == [200, 507, 507, 201]
    assert all(answer.json()["error"]["code"] == "InsufficientStorage" for answer in answers[1:3])
    assert service.journal.lost == 3
    lines = service.journal.file.read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [4]  # the gap shows


def test_half_a_line_is_not_left_in_the_journal(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, write = Call("GET", "/x", {}, {}, {}), os.write
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda stream, data: write(stream, data[:9]))
        service.journal.write(call, 200, {}, None, seconds=0)
    service.journal.write(call, 200, {}, None, seconds=0)
    assert json.loads(service.journal.file.read_text())["n"] == 2


def test_faults_that_are_taken_away_while_one_happens_stay_away(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls, store = service.twin.controls, service.twin.store
    controls.change({"faults": [{"kind": "lost-reply"}]})
    put, others = store.put, []

    def slow(*words: Any) -> None:
        if not others:
            others.append(threading.Thread(target=controls.change, args=({"faults": []},)))
            others[0].start()
            others[0].join(0.3)
        put(*words)

    monkeypatch.setattr(store, "put", slow)
    assert controls.fault("GET", "/x") is not None
    others[0].join()
    assert controls.settings.faults == ()


def test_a_fault_that_happened_while_another_was_added_does_not_happen_again(
    service: Service,
) -> None:
    controls = service.twin.controls
    controls.change({"faults": [{"kind": "lost-reply", "times": 1}]})
    read = [fault.model_dump() for fault in controls.settings.faults]  # as `maas mock fault` does
    assert controls.fault("GET", "/x") is not None
    controls.change({"faults": [*read, {"kind": "cut", "path": "/y"}]})
    assert controls.fault("GET", "/x") is None
    first, second = controls.settings.faults
    controls.change({"faults": [second.model_dump(), {"kind": "slow"}]})
    assert len({fault.id for fault in controls.settings.faults}) == 2
    controls.change({"faults": [{"kind": "lost-reply", "times": 1, "id": first.id}]})
    assert controls.fault("GET", "/x") is not None  # written anew, it begins anew


def test_of_two_jobs_with_one_name_at_once_the_other_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, again = job_door.judge, ["another"]

    def overtaken(*words: Any) -> Any:
        accepted = judge(*words)
        if again:  # while one is looked at, another one comes
            service.submit("one", output=again.pop(0))
        return accepted

    monkeypatch.setattr(job_door, "judge", overtaken)
    with pytest.raises(ServiceError, match="another definition") as caught:
        service.submit("one", output="third")
    assert caught.value.status == 409
    assert service.job("one")["output"] == "another"
    assert len(list((service.twin.site.home / "runs").iterdir())) == 1


def beside(done: list[threading.Thread], act: Callable[[], object]) -> None:
    """Once, in another thread: it comes at a bad moment, and may have to wait."""
    if not done:
        done.append(threading.Thread(target=act))
        done[0].start()
        done[0].join(0.3)


def test_a_model_that_is_being_deployed_is_not_deleted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.submit("one")
    service.work_until_all_ended()
    find, others = served.find_served, list[threading.Thread]()

    def delete() -> None:
        with contextlib.suppress(ServiceError):
            service.call("DELETE", "{W}/models/tuned/versions/1")

    def overtaken(*words: Any) -> Any:
        found = find(*words)
        beside(others, delete)
        return found

    monkeypatch.setattr(served, "find_served", overtaken)
    settings = {"modelId": "azureml://locations/x/workspaces/x/models/tuned/versions/1"}
    body = {"properties": {"modelSettings": settings}}
    service.call("PUT", "{W}/serverlessEndpoints/mine", body)
    others[0].join()
    assert service.twin.store.get("model", "tuned/1") is not None


def test_both_keys_made_anew_at_once_are_both_new(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = deploy(service, "mine")["api-key"]
    key, others = service.twin.dice.key, list[threading.Thread]()
    again = "{W}/serverlessEndpoints/mine/regenerateKeys"

    def slow() -> str:
        beside(others, lambda: service.call("POST", again, {"keyType": "Primary"}))
        return key()

    monkeypatch.setattr(service.twin.dice, "key", slow)
    service.call("POST", again, {"keyType": "Secondary"})
    others[0].join()
    keys: Any = service.call("POST", "{W}/serverlessEndpoints/mine/listKeys").body
    assert old not in keys.values()


def test_of_two_models_with_one_name_at_once_the_other_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, paths = model_source.make, ["b.bin"]

    def put(path: str) -> Reply:
        service.twin.blobs.put(service.twin.site.blob_container, path, b"weights")
        uri = f"azureml://datastores/workspaceblobstore/paths/{path}"
        return service.call("PUT", "{W}/models/m/versions/1", {"properties": {"modelUri": uri}})

    def overtaken(*words: Any) -> Any:
        made = make(*words)
        if paths:
            assert put(paths.pop()).status == 201
        return made

    monkeypatch.setattr(model_source, "make", overtaken)
    with pytest.raises(ServiceError, match="cannot be updated"):
        put("a.bin")
