"""Checking training rows: every bad one, with line, column, reason and fix."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_client.errors import DatasetError
from maas_client.spec import dataset
from maas_client.spec.dataset import check, read_rows
from maas_client.spec.json_place import column_of
from tests.conftest import ROW

USER = {"role": "user", "content": "Where?"}
BOT = {"role": "assistant", "content": "Left."}


CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}


def calling(**call: Any) -> dict[str, Any]:
    """A row whose only answer is this call."""
    return chat(USER, {"role": "assistant", "content": None, "tool_calls": [call]})


def report_of(
    tmp_path: Path, *rows: object, task: str = "chat_completion"
) -> dataset.DatasetReport:
    file = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return check(file, task)


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("row", "code", "points_at"),
    [
        (b'{"messages": [', "not_json", ""),
        (b"[1]", "not_an_object", "[1]"),
        (b'{"a": NaN}', "not_json", None),
        (b'{"a": ' + b"9" * 5000 + b"}", "not_json", None),
        (b'{"a": 1, "a": 2}', "duplicate_key", None),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "encoding", '\ufffd"}'),
        (chat(), "no_messages", "[]}"),
        ({"messages": "hello"}, "no_messages", '"hello"'),
        ({"text": "hello"}, "unknown_key", '"text"'),
        (chat("hello", BOT), "not_an_object", '"hello"'),
        (chat({"role": "robot", "content": "x"}, BOT), "role", '"robot"'),
        (chat({"content": "x"}, BOT), "role", '{"content"'),
        (chat(USER, {"role": "assistant", "content": ""}), "empty_content", '""}'),
        (chat(USER, {"role": "assistant", "content": "  \n"}), "empty_content", '"  '),
        (chat(USER, {"role": "assistant", "content": 5}), "not_text", "5}"),
        (chat(USER, {"role": "assistant"}), "no_content", '{"role": "assistant"}'),
        (chat(USER, {"role": "assistant", "content": "\ud800"}), "encoding", '"\\ud800'),
        (chat(USER | {"mood": "x"}, BOT), "unknown_key", '"mood"'),
        (chat(USER | {"weight": 1}, BOT), "weight", "1}"),
        (chat(USER, BOT | {"weight": 2}), "weight", "2}"),
        (chat(USER, BOT | {"weight": 0}), "weight", '{"role": "assistant"'),
        (chat(BOT, USER), "order", '{"role": "assistant"'),
        (chat(USER), "order", '{"role": "user"'),
        (
            chat(USER, USER, BOT),
            "order",
            '{"role": "user", "content": "Where?"}, {"role": "assistant"',
        ),
        (chat(USER, BOT, USER), "order", '{"role": "user", "content": "Where?"}]'),
        (chat(USER, {"role": "system", "content": "x"}, BOT), "order", '{"role": "system"'),
    ],
)
def test_a_bad_row_is_named_with_line_column_reason_and_fix(
    tmp_path: Path, row: object, code: str, points_at: str | None
) -> None:
    report = report_of(tmp_path, chat(USER, BOT), row)
    assert not report.ok
    first = report.problems[0]
    assert (first.code, first.line) == (code, 2)
    assert first.message
    assert first.hint
    assert (report.rows, report.bad_rows) == (2, 1)
    if points_at is None:
        assert first.column is None
    else:
        assert first.column is not None
        line = Path(report.path).read_bytes().decode("utf-8", "replace").splitlines()[1]
        assert line[first.column - 1 :].startswith(points_at)


@pytest.mark.parametrize(
    "row",
    [
        chat(USER, BOT),
        chat({"role": "system", "content": "Be short."}, USER, BOT),
        chat(USER, BOT, USER, BOT),
        chat(USER, BOT | {"weight": 0}, USER, BOT | {"weight": 1}),
        chat(
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "42", "tool_call_id": "1"},
            BOT,
        ),
        chat(USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}),
        chat(USER, BOT) | {"tools": None},
        chat(USER, BOT) | {"tools": [{"type": "function", "function": {"name": "find"}}]},
        chat(USER, BOT)
        | {"tools": [{"name": "find", "description": "as Phi-4-mini's card has it"}]},
    ],
)
def test_a_good_row_passes(tmp_path: Path, row: dict[str, Any]) -> None:
    report = report_of(tmp_path, row)
    assert report.ok, report.problems
    assert list(read_rows(report.path)) == [row]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (chat(USER, BOT) | {"tools": "[]"}, "tools is text, not a list"),
        (chat(USER, BOT) | {"tools": [3]}, "tool 1 names no function"),
        (calling(), "call 1 of turn 2 names no function"),
        (calling(function={"name": None}), "names no function"),
        (
            calling(function={"name": "find", "arguments": "{oops"}),
            "the arguments of call 1 of turn 2 are no JSON object",
        ),
        (calling(function={"name": "find", "arguments": "[1]"}), "are no JSON object"),
        (chat(USER, {"role": "assistant", "content": 5, "tool_calls": [CALL]}), "is a number"),
    ],
)
def test_tools_and_calls_that_no_model_could_be_shown_are_named(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    report = report_of(tmp_path, row)
    assert said in str(report.problems[0])
    assert report.bad_rows == 1


def test_every_bad_row_is_reported_not_only_the_first(tmp_path: Path) -> None:
    rows: list[object] = [chat(USER, BOT) if n % 3 else chat(BOT) for n in range(300)]
    report = report_of(tmp_path, *rows)
    assert [problem.line for problem in report.problems] == list(range(1, 300, 3))


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    report = report_of(tmp_path, b"\xef\xbb\xbf" + ROW.encode())
    assert report.ok
    assert next(read_rows(report.path))["messages"][1]["content"] == "Left."


def test_utf_16_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW.encode("utf-16"))
    (problem,) = check(file, "chat_completion").problems
    assert problem.hint == "save it as UTF-8"


def test_an_empty_file_is_bad(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert check(tmp_path / "rows.jsonl", "chat_completion").problems[0].code == "empty"


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROW)
    assert (
        check(tmp_path / "rows.jsonl", "chat_completion", max_bytes=10).problems[0].code
        == "too_large"
    )


def test_a_line_without_end_is_not_swallowed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_ROW_BYTES", 1000)
    (tmp_path / "rows.jsonl").write_bytes(b"x" * 5000)
    report = check(tmp_path / "rows.jsonl", "chat_completion")
    assert [problem.code for problem in report.problems] == ["row_too_large"]


def test_blank_and_repeated_rows_are_remarks(tmp_path: Path) -> None:
    report = report_of(tmp_path, ROW.encode(), b"", ROW.encode())
    assert report.ok
    assert [(remark.line, remark.code) for remark in report.warnings] == [
        (2, "blank_line"),
        (3, "duplicate"),
    ]


def test_text_rows_have_their_own_columns(tmp_path: Path) -> None:
    good = report_of(
        tmp_path, {"text": "a"}, {"prompt": "a", "completion": "b"}, task="text_completion"
    )
    assert good.ok
    bad = report_of(
        tmp_path,
        {"text": "a", "label": 1},
        {"prompt": "", "completion": "b"},
        task="text_completion",
    )
    assert [problem.code for problem in bad.problems] == ["columns", "empty_content"]


def test_a_folder_or_an_unknown_task_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="folder"):
        check(tmp_path, "chat_completion")
    with pytest.raises(DatasetError, match="image_classification"):
        check(tmp_path, "image_classification")


@given(st.binary(max_size=300))
def test_garbage_never_breaks_the_check(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    file = tmp_path_factory.mktemp("garbage") / "rows.jsonl"
    file.write_bytes(garbage)
    assert not check(file, "chat_completion").ok


@given(seed=st.integers(0, 10_000))
def test_a_column_points_at_the_value(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    data = {f"k{i}": [rng.randint(0, 99), {"x": 'q"uo\\te', "y": [1, 2]}] for i in range(4)}
    text = json.dumps(data, indent=rng.choice([None, 2]))
    key = rng.choice(list(data))
    at = column_of(text, (key, 1, "y", 1)) - 1
    assert text[at] == "2"
    assert text[column_of(text, (key, 0)) - 1 :].startswith(str(data[key][0]))
