"""A live log: what the SDK prints in one thread, kept apart, and begun again where it breaks."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest

from maas_client.targets.azure_ml import stream
from maas_client.targets.azure_ml.log import StreamReader
from maas_client.targets.azure_ml.stream import Printed, Stream

LOG = "Streaming user_logs/std_log.txt\n====\n\n"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_PAUSE", 0.0)


def test_what_each_thread_prints_goes_to_its_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = io.StringIO()
    printed = Printed(rest)
    monkeypatch.setattr(sys, "stdout", printed)
    found: dict[str, list[str]] = {"a": [], "b": []}
    both = threading.Barrier(2, timeout=10)

    def run(name: str) -> None:
        with printed.to(found[name].append):
            both.wait()
            sys.stdout.write(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write("noise")
    assert found == {"a": ["a"], "b": ["b"]}
    assert rest.getvalue() == "noise"


def test_a_stream_that_breaks_is_begun_again_and_repeats_no_line() -> None:
    """As azure-ai-ml's does while the service answers `services: null`."""
    texts = ["", f"{LOG}one\ntwo\n", f"{LOG}one\ntwo\nthree\n\nExecution Summary\n"]
    begun: list[str] = []

    def run(reader: StreamReader) -> None:
        begun.append(texts[len(begun)])
        reader.feed(begun[-1])

    job = Stream(run)
    for _ in texts:
        time.sleep(0.01)
        job.keep_going()
        assert job.has_ended(within=10)
    assert job.reader.lines == ["one", "two", "three"]
    assert job.reader.is_whole


def test_a_stream_that_runs_is_left_alone() -> None:
    go = threading.Event()
    begun: list[int] = []

    def run(_: StreamReader) -> None:
        begun.append(1)
        go.wait(10)

    job = Stream(run)
    job.keep_going()
    job.keep_going()
    assert not job.has_ended(within=0.01)
    go.set()
    assert job.has_ended(within=10)
    assert begun == [1]
