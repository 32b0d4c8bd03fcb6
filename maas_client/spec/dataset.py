"""A file of training rows: checked whole, with every bad row reported; read; and written as JSONL.

The client runs it before it sends a file, the mock server when a job arrives: the same code, so
the two cannot disagree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maas_client.errors import DatasetError, Problem
from maas_client.spec.chat_rows import trained_turns
from maas_client.spec.home import home
from maas_client.spec.json_place import column_of, key_column
from maas_client.spec.rows import Fault
from maas_client.spec.rundir import file_digest, write_whole
from maas_client.spec.tables import format_of, records
from maas_client.spec.tasks import Task, find_task

MAX_BYTES = 512 * 1024 * 1024
"""Azure's limit for a training file (fine-tune-serverless, 2025-03-11)."""

MAX_ROW_BYTES = 8 * 1024 * 1024
"""Longer than any context of the family; a longer line is a file that is not JSONL."""

MAX_REPORTED = 10_000
"""Bad rows that are described one by one; the rest are counted."""


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


def check(path: str | Path, task: str, *, max_bytes: int = MAX_BYTES) -> DatasetReport:
    """Check every row of a file: JSONL, or by its ending csv, tsv or parquet.

    Raises:
        DatasetError: the file cannot be read, or there is no row format for the task.
    """
    file = Path(path)
    tally = _Tally(find_task(task))
    try:
        size = file.stat().st_size
        if size > max_bytes:
            tally.refuse(
                None, "too_large", f"{size:,} bytes; at most {max_bytes:,} are allowed", "split it"
            )
            return tally.report(file, size, "")
        if format_of(file) == "jsonl":
            digest = _check_lines(file, tally)
        else:
            digest = file_digest(file)
            _check_records(file, tally)
    except IsADirectoryError as error:
        raise DatasetError(f"{file} is a folder", hint="Name the file of rows in it.") from error
    except OSError as error:
        raise DatasetError(
            f"{file}: {error.strerror}", hint="Paths are relative to the job file."
        ) from error
    if not tally.rows and not tally.problems:
        tally.refuse(None, "empty", "the file holds no row", "add at least one row")
    return tally.report(file, size, digest)


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `check` found good."""
    for _, row in numbered_rows(path):
        yield row


def numbered_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same, each with its line in the file, from 1."""
    file = Path(path)
    if format_of(file) != "jsonl":
        for number, record in records(file):
            if isinstance(record, Fault):
                raise DatasetError(f"{file}: line {number}: {record.message}", hint=record.fix)
            yield number, record
        return
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, json.loads(line)


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows, one a line; the file is there whole or not at all."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def as_jsonl(report: DatasetReport) -> Path:
    """The rows of a good file as JSONL, in a file of our own that is named by their content."""
    file = Path(report.path)
    place = home() / "converted" / report.sha256[:16] / f"{file.stem}.jsonl"
    if not place.exists():
        write_jsonl(read_rows(file), place)
    return place


@dataclass
class _Tally:
    task: Task
    rows: int = 0
    bad_rows: int = 0
    turns: int = 0
    stopped: bool = False
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    seen: dict[bytes, int] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    """Columns that were remarked on."""

    def refuse(
        self, line: int | None, code: str, message: str, fix: str, column: int | None = None
    ) -> None:
        if len(self.problems) < MAX_REPORTED:
            self.problems.append(Problem(message, line=line, column=column, hint=fix, code=code))

    def warn(self, line: int, code: str, message: str, fix: str) -> None:
        if len(self.warnings) < MAX_REPORTED:
            self.warnings.append(Problem(message, line=line, hint=fix, code=code))

    def judge(self, line: int, row: Any, place: Callable[[Fault], int | None]) -> bool:
        """Check a row's form; whether it is good."""
        good = True
        for fault in self.task.faults(row):
            good = False
            self.refuse(line, fault.code, fault.message, fault.fix, place(fault))
        if good:
            self.turns += trained_turns(row) if self.task.name == "chat_completion" else 1
            self._remark_unread(line, row)
        return good

    def _remark_unread(self, line: int, row: Mapping[str, Any]) -> None:
        if self.task.ask is None:
            return
        for column in sorted(set(row) - self.task.ask(row).read - self.unread):
            self.unread.add(column)
            said = f"{column} is not read for {self.task.name}, in this row and all others"
            self.warn(line, "unread", said, "nothing to do, unless it was meant to be")

    def note_repeat(self, line: int, content: bytes) -> None:
        """Remark a row that was there before."""
        key = hashlib.blake2b(content, digest_size=16).digest()
        if first := self.seen.get(key):
            self.warn(
                line,
                "duplicate",
                f"the row repeats line {first}",
                "delete it, unless it is meant to count twice",
            )
        else:
            self.seen[key] = line

    def report(self, file: Path, size: int, sha256: str) -> DatasetReport:
        return DatasetReport(
            path=str(file),
            task=self.task.name,
            rows=self.rows,
            bytes=size,
            sha256=sha256,
            bad_rows=self.bad_rows,
            problems=tuple(self.problems),
            warnings=tuple(self.warnings),
            turns=self.turns,
        )


def _check_lines(file: Path, tally: _Tally) -> str:
    """Check JSONL, and return the file's sha256: it is read once, while it goes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        line = 0
        while not tally.stopped and (raw := stream.readline(MAX_ROW_BYTES + 1)):
            line += 1
            digest.update(raw)
            _check_line(raw, line, tally)
        for rest in iter(lambda: stream.read(1 << 20), b""):
            digest.update(rest)
    return digest.hexdigest()


def _check_records(file: Path, tally: _Tally) -> None:
    for line, record in records(file):
        tally.rows += 1
        if isinstance(record, Fault):
            tally.bad_rows += 1
            tally.refuse(line, record.code, record.message, record.fix)
            continue
        # In a table the message names the column; a place in the line would be counted by nobody.
        tally.bad_rows += not tally.judge(line, record, lambda _: None)
        tally.note_repeat(line, json.dumps(record, sort_keys=True, default=str).encode())


def _check_line(raw: bytes, line: int, tally: _Tally) -> None:
    if _is_no_line(raw, line, tally):
        tally.stopped = True  # what follows is the middle of something
        return
    if line == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        if (raw and line > 1) or raw.strip(b"\r\n"):
            tally.warn(line, "blank_line", "the line is blank, and is skipped", "delete it")
        return
    tally.rows += 1
    try:
        text, row = _decode(raw)
    except Fault as fault:
        tally.bad_rows += 1
        column = int(fault.at[0]) if fault.at else None
        tally.refuse(line, fault.code, fault.message, fault.fix, column)
    else:

        def place(fault: Fault) -> int | None:
            return key_column(text, fault.at) if fault.key else column_of(text, fault.at)

        tally.bad_rows += not tally.judge(line, row, place)
    tally.note_repeat(line, raw.strip())


def _is_no_line(raw: bytes, line: int, tally: _Tally) -> bool:
    """Whether this is no line of UTF-8 that could hold a row; said, where it is so."""
    if line == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        tally.refuse(1, "encoding", "the file is UTF-16", "save it as UTF-8", 1)
        return True
    if len(raw) <= MAX_ROW_BYTES:
        return False
    tally.rows += 1
    tally.bad_rows += 1
    said = f"the row is longer than {MAX_ROW_BYTES:,} bytes"
    tally.refuse(line, "row_too_large", said, "put one row on a line")
    return True


def _decode(raw: bytes) -> tuple[str, Any]:
    """The line as text, and the row in it.

    Raises:
        Fault: it is no JSON; `at` is the column, where it is known.
    """
    fix = "a row is one JSON object on one line"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8", "replace")) + 1
        said = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise Fault("encoding", said, "save the file as UTF-8", (column,)) from error
    try:
        return text, _DECODER.decode(text.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise Fault("not_json", f"not JSON: {error.msg.lower()}", fix, (error.colno,)) from error
    except RecursionError as error:
        raise Fault("not_json", "nested too deeply", "a row is a flat object", (1,)) from error
    except ValueError as error:  # Python reads no number of thousands of digits
        raise Fault("not_json", "a number is too long", "write it as text") from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Fault("duplicate_key", f"{twice!r} is given twice in one object", "keep one")
    return data


def _constant(word: str) -> Any:
    raise Fault("not_json", f"{word} is not JSON", "use null or a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)
