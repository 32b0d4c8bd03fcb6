"""Many who ask one process at once, with a process of a test's own: it says what the question tells it to."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from local_runner.clock import Clock
from local_runner.mock_server import credentials
from local_runner.mock_server.chat import ChildSpeaker, one_answer
from local_runner.mock_server.control.controls import Controls, Settings
from local_runner.mock_server.control.journal import Journal
from local_runner.mock_server.dice import Dice
from local_runner.mock_server.doors.table import make_app, make_router
from local_runner.mock_server.engine import Engine
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.storage.blobs import BlobStore
from local_runner.mock_server.store import Store
from local_runner.mock_server.twin import Site, Twin
from local_runner.mock_server.wire import Call
from local_runner.mock_server.worker import Worker

STUB = """
import json, os, sys, threading, time

lock, dropped, dripping = threading.Lock(), set(), set()

def say(**words):
    with lock:
        print(json.dumps(words), flush=True)

def drip(number):
    while number not in dropped:
        say(id=number, delta=".")
        time.sleep(0.002)
    say(id=number, cancelled=True)

say(ready=True)
for line in sys.stdin:
    words = json.loads(line)
    if "cancel" in words:
        if words["cancel"] not in dripping:
            say(id=words["cancel"], cancelled=True)
        dropped.add(words["cancel"])
        continue
    number, text = words["id"], words["messages"][0]["content"]
    if text == "chatter":
        print("{this is no JSON", flush=True)
    if text == "die":
        sys.exit("I die of it")
    if text == "ponder":  # says nothing until it is told to stop
        continue
    if text == "drip":
        dripping.add(number)
        threading.Thread(target=drip, args=(number,), daemon=True).start()
        continue
    say(id=number, delta=f"{text} {os.getpid()}")
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    say(id=number, done=True, finish_reason="stop", usage=usage)
"""
"""Drips until it is told to stop: an answer that ends, was cancelled."""


@pytest.fixture
def speaker(tmp_path: Path) -> Iterator[ChildSpeaker]:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    engine = Engine("train", base="", runner=(sys.executable, str(script)))
    made = ChildSpeaker(engine, tmp_path / "answer.log")
    yield made
    made.close()


def turns(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def said(speaker: ChildSpeaker, text: str, model: str = "phi") -> str:
    return "".join(
        piece.get("delta", "")
        for piece in one_answer(speaker, model, None, turns(text), threading.Event())
    )


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_question_is_answered_while_others_are_and_by_the_same_process(
    speaker: ChildSpeaker,
) -> None:
    first = said(speaker, "pid")
    long = one_answer(speaker, "phi", None, turns("drip"), threading.Event())
    assert next(long)["delta"] == "."
    assert said(speaker, "pid") == first
    assert speaker.running() == 1
    long.close()  # type: ignore[attr-defined]
    wait_for(lambda: speaker.running() == 0)
    assert said(speaker, "pid") == first


def test_what_a_library_prints_into_the_answers_stops_nobody(speaker: ChildSpeaker) -> None:
    assert said(speaker, "chatter").startswith("chatter")
    assert said(speaker, "hello").startswith("hello")


def test_several_questions_are_answered_side_by_side(speaker: ChildSpeaker) -> None:
    asked = [turns("drip"), turns("pid"), turns("drip")]
    pieces = speaker.answers("phi", None, asked, threading.Event())
    seen: set[int] = set()
    while seen != {0, 1, 2}:  # the first never ends
        seen.add(next(pieces)[0])
    assert speaker.running() >= 2
    pieces.close()  # type: ignore[attr-defined]
    wait_for(lambda: speaker.running() == 0)


def test_everybody_hears_of_it_when_the_process_dies_and_the_next_question_starts_another(
    speaker: ChildSpeaker,
) -> None:
    first = said(speaker, "pid")
    started = threading.Barrier(6)

    def listen() -> str:
        try:
            pieces = one_answer(speaker, "phi", None, turns("drip"), threading.Event())
            next(pieces)
            started.wait(30)
            for _ in pieces:
                pass
        except ServiceError as error:
            return f"{error.status} {error.message}"
        return "an end"

    with ThreadPoolExecutor(5) as pool:
        heard = [pool.submit(listen) for _ in range(5)]
        started.wait(30)
        with pytest.raises(ServiceError, match="I die of it"):
            said(speaker, "die")
        words = {each.result(timeout=30) for each in heard}
    assert words == {"503 The model cannot answer: I die of it"}
    assert "I die of it" in (speaker.fault() or "")
    second = said(speaker, "pid")
    assert second.startswith("pid ")
    assert second != first
    assert speaker.fault() is None


def test_two_bases_stay_in_memory_and_the_one_asked_longest_ago_goes(
    speaker: ChildSpeaker,
) -> None:
    first = {model: said(speaker, "pid", model) for model in ("a", "b")}
    assert said(speaker, "pid", "a") == first["a"]
    said(speaker, "pid", "c")
    assert [speaker.is_ready(model) for model in ("a", "b", "c")] == [True, False, True]
    assert said(speaker, "pid", "a") == first["a"]


def test_a_base_that_somebody_listens_to_does_not_go(speaker: ChildSpeaker) -> None:
    long = one_answer(speaker, "a", None, turns("drip"), threading.Event())
    next(long)
    for model in ("b", "c"):
        said(speaker, "pid", model)
    assert [speaker.is_ready(model) for model in ("a", "b", "c")] == [True, False, True]
    assert next(long)["delta"] == "."
    long.close()  # type: ignore[attr-defined]


@pytest.fixture
def twin(speaker: ChildSpeaker, tmp_path: Path) -> Iterator[Twin]:
    store = Store(tmp_path / "store.sqlite")
    yield Twin(
        Site("https://127.0.0.1:1", tmp_path),
        store,
        BlobStore(tmp_path / "blobs", store),
        credentials.ensure(tmp_path / "secrets.json"),
        speaker.engine,
        speaker,
        Clock(),
        Dice(store),
        Controls(store, Settings()),
    )
    store.close()


@pytest.mark.parametrize("words", ["drip", "ponder"])  # with words already, and before the first
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_stops_its_answer(
    twin: Twin, tmp_path: Path, words: str, *, stream: bool
) -> None:
    worker, journal = Worker(twin), Journal(tmp_path / "journal.jsonl", [])
    router = make_router(twin, worker, journal)

    def call(method: str, path: str, body: Any = None) -> Any:
        path = path.replace("{W}", twin.site.workspace_path)
        route, params = router.find(method, path)
        return route.handler(Call(method, path, params, {}, {}, json.dumps(body).encode())).body

    model = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct"
    settings = {"properties": {"modelSettings": {"modelId": model}}}
    call("PUT", "{W}/serverlessEndpoints/mine", settings)
    key = call("POST", "{W}/serverlessEndpoints/mine/listKeys")["primaryKey"]

    def answers() -> int:
        return int(call("GET", "/__mock__/status")["answers"])

    async def hang_up_in_the_middle() -> None:
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                body = json.dumps(turns(words, stream=stream)).encode()
                return {"type": "http.request", "body": body, "more_body": False}
            while answers() == 0:
                await anyio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        path = "/serverless/mine/v1/chat/completions"
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"api-key", key.encode())],
        }
        with anyio.fail_after(30):
            await make_app(twin, worker, journal)(scope, receive, send)

    anyio.run(hang_up_in_the_middle)
    wait_for(lambda: answers() == 0)
    journal.close()
