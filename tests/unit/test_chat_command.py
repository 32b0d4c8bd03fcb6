"""`maas chat`: one question, or line by line; an answer that fails or is stopped is as if not asked."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from maas_client import flow
from maas_client.cli.main import run_cli
from maas_client.errors import RunnerError
from maas_client.serving import Answer, Chat


class Parrot:
    """Says the last question again, and keeps what it was sent."""

    about = "answers: a parrot (a stand-in)"

    def __init__(self) -> None:
        self.heard: list[Sequence[Mapping[str, str]]] = []
        self.closed = False

    def whole(self, body: Mapping[str, Any]) -> Answer:
        return Answer("".join(self.pieces(body)), "stop", 1, 1)

    def pieces(self, body: Mapping[str, Any]) -> Iterator[str]:
        self.heard.append(body["messages"])
        text = body["messages"][-1]["content"]
        if text == "fail":
            raise RunnerError("it broke")
        yield "you said "
        if text == "stop":
            raise KeyboardInterrupt
        yield text

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    line = Parrot()
    monkeypatch.setattr(flow, "open_local_chat", lambda *_, **__: Chat(line))
    return line


def test_a_conversation_goes_on_after_a_failure_and_a_stop(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "one\n\nfail\nstop\ntwo\n/new\nthree\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked))
    assert run_cli(["chat", "--local", "run", "--system", "be brief"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split("\n")[:2] == ["you said one", "you said you said two"]
    assert "error: it broke" in printed.err
    assert "a parrot (a stand-in)" in printed.err
    said = [[turn["content"] for turn in turns] for turns in parrot.heard]
    assert said[3] == ["be brief", "one", "you said one", "two"]
    assert said[4] == ["be brief", "three"]
    assert parrot.closed


@pytest.mark.parametrize("question", [["hello"], ["-m", "hello"], ["--message", "hello", "--json"]])
def test_one_question_is_one_answer(
    parrot: Parrot, capsys: pytest.CaptureFixture[str], question: list[str]
) -> None:
    assert run_cli(["chat", "--local", "run", *question]) == 0
    assert "you said hello" in capsys.readouterr().out
    assert len(parrot.heard) == 1


@pytest.mark.parametrize(
    "words", [["--base", "tiny", "hello"], ["--local", "hello", "-m", "again"]]
)
def test_what_contradicts_itself_is_refused(words: list[str]) -> None:
    assert run_cli(["chat", "run", *words]) == 2
