"""What a training row may look like, per task. Checks a JSONL file whole and reports every bad row.

The client runs it before it sends a file, the mock server when a job arrives: the same code, so
the two cannot disagree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maas_client.errors import DatasetError, Problem
from maas_client.spec.json_place import JsonPath, column_of, key_column

MAX_BYTES = 512 * 1024 * 1024
"""Azure's limit for a training file (fine-tune-serverless, 2025-03-11)."""

MAX_ROW_BYTES = 8 * 1024 * 1024
"""Longer than any context of the family; a longer line is a file that is not JSONL."""

MAX_REPORTED = 10_000
"""Bad rows that are described one by one; the rest are counted."""

ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = ("role", "content", "name", "weight", "tool_calls", "tool_call_id")

TEXT_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("text", "ground_truth"),
    ("prompt", "ground_truth"),
    ("prompt", "completion"),
)
"""Columns of a text_completion row: all of `text` is trained, or only the second column."""


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a file of rows holds. `bad_rows` is 0 for a file that can be trained on."""

    path: str
    task: str
    rows: int
    """Rows, good and bad, blank lines not counted."""
    bytes: int
    sha256: str
    bad_rows: int = 0
    problems: tuple[Problem, ...] = ()
    """At most `MAX_REPORTED`, in order of their lines."""
    warnings: tuple[Problem, ...] = ()
    turns: int = 0
    """Assistant turns that will be trained (chat), else rows."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


class _Bad(Exception):  # noqa: N818 - never leaves this module
    """One fault of one row, by its place in the JSON."""

    def __init__(
        self, code: str, message: str, fix: str, at: JsonPath = (), *, key: bool = False
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.fix, self.at, self.key = code, message, fix, at, key


RowCheck = Callable[[Any], Iterator[_Bad]]


def check(path: str | Path, task: str, *, max_bytes: int = MAX_BYTES) -> DatasetReport:
    """Check every row of a JSONL file.

    Raises:
        DatasetError: the file cannot be read, or there is no row format for the task.
    """
    file = Path(path)
    row_check = _row_check(task)
    tally = _Tally()
    try:
        size = file.stat().st_size
        if size > max_bytes:
            tally.refuse(
                None, "too_large", f"{size:,} bytes; at most {max_bytes:,} are allowed", "split it"
            )
            return tally.report(file, task, size, hashlib.sha256())
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            line = 0
            while raw := stream.readline(MAX_ROW_BYTES + 1):
                line += 1
                digest.update(raw)
                _check_line(raw, line, row_check, tally)
                if tally.stopped:
                    break
            for rest in iter(lambda: stream.read(1 << 20), b""):
                digest.update(rest)
    except IsADirectoryError as error:
        raise DatasetError(f"{file} is a folder", hint="Name the JSONL file in it.") from error
    except OSError as error:
        raise DatasetError(
            f"{file}: {error.strerror}", hint="Paths are relative to the job file."
        ) from error
    if not tally.rows and not tally.problems:
        tally.refuse(None, "empty", "the file holds no row", "add at least one row")
    return tally.report(file, task, size, digest)


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `check` found good."""
    for _, row in numbered_rows(path):
        yield row


def numbered_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same, each with its line in the file, from 1."""
    with Path(path).open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, json.loads(line)


@dataclass
class _Tally:
    rows: int = 0
    bad_rows: int = 0
    turns: int = 0
    stopped: bool = False
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    seen: dict[bytes, int] = field(default_factory=dict)

    def refuse(
        self, line: int | None, code: str, message: str, fix: str, column: int | None = None
    ) -> None:
        if len(self.problems) < MAX_REPORTED:
            self.problems.append(Problem(message, line=line, column=column, hint=fix, code=code))

    def warn(self, line: int, code: str, message: str, fix: str) -> None:
        if len(self.warnings) < MAX_REPORTED:
            self.warnings.append(Problem(message, line=line, hint=fix, code=code))

    def report(self, file: Path, task: str, size: int, digest: Any) -> DatasetReport:
        return DatasetReport(
            path=str(file),
            task=task,
            rows=self.rows,
            bytes=size,
            sha256=digest.hexdigest(),
            bad_rows=self.bad_rows,
            problems=tuple(self.problems),
            warnings=tuple(self.warnings),
            turns=self.turns,
        )


def _check_line(raw: bytes, line: int, row_check: RowCheck, tally: _Tally) -> None:
    if line == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        tally.refuse(1, "encoding", "the file is UTF-16", "save it as UTF-8", 1)
        tally.stopped = True
        return
    if len(raw) > MAX_ROW_BYTES:
        tally.rows += 1
        tally.bad_rows += 1
        tally.refuse(
            line,
            "row_too_large",
            f"the row is longer than {MAX_ROW_BYTES:,} bytes",
            "put one row on a line",
        )
        tally.stopped = (
            True  # what follows is the middle of a row: nothing sensible can be said of it
        )
        return
    if line == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        if (raw and line > 1) or raw.strip(b"\r\n"):
            tally.warn(line, "blank_line", "the line is blank, and is skipped", "delete it")
        return
    tally.rows += 1
    bad = False
    for code, message, fix, column in _row_faults(raw, row_check, tally):
        bad = True
        tally.refuse(line, code, message, fix, column)
    tally.bad_rows += bad
    key = hashlib.blake2b(raw.strip(), digest_size=16).digest()
    if first := tally.seen.get(key):
        tally.warn(
            line,
            "duplicate",
            f"the row repeats line {first}",
            "delete it, unless it is meant to count twice",
        )
    else:
        tally.seen[key] = line


def _row_faults(
    raw: bytes, row_check: RowCheck, tally: _Tally
) -> Iterator[tuple[str, str, str, int | None]]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8", "replace")) + 1
        yield (
            "encoding",
            f"byte 0x{raw[error.start]:02x} is not UTF-8",
            "save the file as UTF-8",
            column,
        )
        return
    try:
        row = _DECODER.decode(text.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        fix = "a row is one JSON object on one line"
        yield "not_json", f"not JSON: {error.msg.lower()}", fix, error.colno
        return
    except _Bad as error:
        yield error.code, error.message, error.fix, None
        return
    except RecursionError:
        yield "not_json", "nested too deeply", "a row is a flat object", 1
        return
    except ValueError:  # Python reads no number of thousands of digits
        yield "not_json", "a number is too long", "write it as text", None
        return
    found = False
    for fault in row_check(row):
        found = True
        column = key_column(text, fault.at) if fault.key else column_of(text, fault.at)
        yield fault.code, fault.message, fault.fix, column
    if not found:
        tally.turns += _trained_turns(row)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Bad("duplicate_key", f"{twice!r} is given twice in one object", "keep one")
    return data


def _constant(word: str) -> Any:
    raise _Bad("not_json", f"{word} is not JSON", "use null or a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def _trained_turns(row: dict[str, Any]) -> int:
    messages = row.get("messages")
    if messages is None:
        return 1
    return sum(m["role"] == "assistant" and m.get("weight", 1) != 0 for m in messages)


def _row_check(task: str) -> RowCheck:
    checks: dict[str, RowCheck] = {"chat_completion": _chat_row, "text_completion": _text_row}
    if task not in checks:
        raise DatasetError(
            f"rows for task {task} cannot be checked yet",
            hint=f"Tasks whose rows are known: {', '.join(checks)}.",
        )
    return checks[task]


def _text_row(row: Any) -> Iterator[_Bad]:
    if not isinstance(row, dict):
        yield _Bad(
            "not_an_object", f"the row is {_kind(row)}, not an object", 'write {"text": "…"}'
        )
        return
    columns = tuple(row)
    if not any(set(columns) == set(known) for known in TEXT_COLUMNS):
        formats = "; ".join(" + ".join(known) for known in TEXT_COLUMNS)
        yield _Bad(
            "columns", f"the row has the keys {', '.join(columns) or '(none)'}", f"use {formats}"
        )
        return
    for key, value in row.items():
        yield from _text_faults(value, (key,), key)


def _chat_row(row: Any) -> Iterator[_Bad]:
    if not isinstance(row, dict):
        fix = 'write {"messages": […]}'
        yield _Bad("not_an_object", f"the row is {_kind(row)}, not an object", fix)
        return
    for key in row:
        if key not in ("messages", "tools"):
            fix = "remove it; only messages (and tools) are read"
            yield _Bad("unknown_key", f"{key!r} is not a key of a chat row", fix, (key,), key=True)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        what = "an empty list" if messages == [] else _kind(messages)
        message = f"messages is {what}" if "messages" in row else "the row has no messages"
        yield _Bad(
            "no_messages", message, "write a list of turns, the last the assistant's", ("messages",)
        )
        return
    yield from _turns(messages)


def _turns(messages: list[Any]) -> Iterator[_Bad]:
    ordered = True  # whether the roles are all known, so that their order can be judged
    for index, message in enumerate(messages):
        for fault in _message(message, index):
            ordered = ordered and fault.code not in ("role", "not_an_object", "tool_calls")
            yield fault
    if ordered:
        yield from _order(messages)


def _message(message: Any, index: int) -> Iterator[_Bad]:
    at: JsonPath = ("messages", index)
    if not isinstance(message, dict):
        yield _Bad(
            "not_an_object",
            f"turn {index + 1} is {_kind(message)}, not an object",
            "write role and content",
            at,
        )
        return
    for key in message:
        if key not in _MESSAGE_KEYS:
            fix = f"allowed: {', '.join(_MESSAGE_KEYS)}"
            yield _Bad("unknown_key", f"{key!r} is not a key of a turn", fix, (*at, key), key=True)
    role = message.get("role")
    if role not in ROLES:
        what = "has no role" if role is None else f"has the role {role!r}"
        yield _Bad("role", f"turn {index + 1} {what}", f"use {', '.join(ROLES)}", (*at, "role"))
        return
    yield from _content(message, at, index)
    if "weight" in message:
        weight = message["weight"]
        if role != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
            fix = "only an assistant turn takes a weight, 0 (not trained) or 1"
            yield _Bad(
                "weight", f"turn {index + 1} ({role}) has weight {weight!r}", fix, (*at, "weight")
            )


def _content(message: dict[str, Any], at: JsonPath, index: int) -> Iterator[_Bad]:
    calls = message.get("tool_calls")
    if calls is not None and (
        message["role"] != "assistant" or not isinstance(calls, list) or not calls
    ):
        yield _Bad(
            "tool_calls",
            f"turn {index + 1} has bad tool_calls",
            "a list, in an assistant turn",
            (*at, "tool_calls"),
        )
    elif calls and message.get("content") is None:
        return
    if "content" not in message:
        yield _Bad(
            "no_content", f"turn {index + 1} ({message['role']}) has no content", "add content", at
        )
        return
    yield from _text_faults(
        message["content"], (*at, "content"), f"the content of turn {index + 1}"
    )


def _text_faults(value: Any, at: JsonPath, name: str) -> Iterator[_Bad]:
    if not isinstance(value, str):
        yield _Bad("not_text", f"{name} is {_kind(value)}, not text", "write a string", at)
    elif not value.strip():
        yield _Bad("empty_content", f"{name} is empty", "write the text, or delete the row", at)
    elif any("\ud800" <= char <= "\udfff" for char in value):
        yield _Bad(
            "encoding",
            f"{name} holds half a character (a lone surrogate)",
            "write the whole character",
            at,
        )


_NEXT = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def _order(messages: list[dict[str, Any]]) -> Iterator[_Bad]:
    before = "start"
    for index, message in enumerate(messages):
        role = message["role"]
        allowed = _NEXT[before]
        if before == "assistant" and not messages[index - 1].get("tool_calls"):
            allowed = ("user",)
        if role not in allowed:
            where = "opens the conversation" if before == "start" else f"follows {before}"
            fix = f"expected {' or '.join(allowed)} here"
            yield _Bad("order", f"turn {index + 1} ({role}) {where}", fix, ("messages", index))
            return
        before = role
    last = len(messages) - 1
    if before != "assistant":
        fix = "end with the answer that is to be learned"
        yield _Bad("order", f"the last turn is {before}", fix, ("messages", last))
    elif not _trained_turns({"messages": messages}):
        fix = "give at least one assistant turn the weight 1"
        yield _Bad(
            "weight",
            "every assistant turn has weight 0: nothing would be trained",
            fix,
            ("messages", last),
        )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
