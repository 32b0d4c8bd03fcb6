"""`maas preview` can be read in colour, without it, and by programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maas_client import planning
from maas_client.cli.main import run_cli


def token(text: str, *, trained: bool = False, end: bool = False) -> dict[str, Any]:
    return {"id": 1, "text": text, "trained": trained, "end": end}


TOKENS = [
    token("<|user|>\n"),
    token("w\x1b[31mhat"),
    token("日"),
    token(""),
    *(token("on") for _ in range(100)),
    token("yes", trained=True),
    token("<|end|>", trained=True, end=True),
    token("rest"),
]
ROW = {"line": 7, "length": len(TOKENS), "trained": 2, "cut": len(TOKENS) - 1, "notes": ["system"]}
FOUND = {
    "path": "/data/train.jsonl",
    "base": {"label": "a base"},
    "rows": [{**ROW, "tokens": TOKENS}, {"line": 9, "error": "it cannot be said"}],
}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(planning, "preview", lambda *_, **__: FOUND)

    def show(*options: str) -> str:
        assert run_cli(["preview", "job.yaml", *options]) == 0
        return capsys.readouterr().out

    return show


def test_without_colour_brackets_say_what_is_trained(shown: Any) -> None:
    text = shown()
    assert "train.jsonl line 7: 107 tokens, 2 trained, cut at 106" in text
    assert "⟦yes¦<|end|>■⟧ ✂ rest" in text
    assert "tokens …" in text
    assert "its words stand in the user's" in text
    assert "cannot be trained: it cannot be said" in text


def test_a_row_obeys_nobody_and_shows_its_white_space(shown: Any) -> None:
    text = shown("--full")
    assert "\x1b" not in text
    assert "<|user|>⏎\nw\\u001b[31mhat¦日¦▫¦on" in text
    assert text.replace("\n", "").count("on") >= 100


def test_programs_get_it_whole(shown: Any) -> None:
    import json

    assert json.loads(shown("--json")) == FOUND


def test_a_file_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["preview", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
