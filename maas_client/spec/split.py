"""Training and validation rows out of one file, without a question that is in both.

Rows that ask the same go to the same side, whatever their case, spacing and punctuation: a model that has
learned the answer would otherwise be praised for remembering it.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from maas_client.errors import DatasetError
from maas_client.spec.dataset import DatasetReport, check, numbered_rows
from maas_client.spec.home import home
from maas_client.spec.inputs import SplitPlan
from maas_client.spec.rundir import write_whole
from maas_client.spec.tables import format_of
from maas_client.spec.task_rows import TEXT_COLUMNS, Row
from maas_client.spec.tasks import find_task

_SMALL_TALK = 3
"""Words of a later turn that ties nothing together: "yes, please" is said in many conversations."""


def split_file(
    report: DatasetReport, *, fraction: float, seed: int, into: tuple[Path, Path] | None = None
) -> tuple[DatasetReport, DatasetReport, SplitPlan]:
    """Write training and validation rows, each in the order of the file.

    Args:
        report: of a file that `check` found good.
        fraction: share of rows for validation, above 0 and below 1.
        seed: other sides for other seeds; the same for the same rows in any order.
        into: where to write them; None is a place of our own that is named by their content.

    Returns:
        The two files, checked, and what was done.

    Raises:
        DatasetError: the fraction is none, or the rows cannot be parted.
    """
    if not 0 < fraction < 1:
        raise DatasetError(
            f"a validation split of {fraction:g} is none", hint="Name a share, such as 0.1."
        )
    source = Path(report.path)
    rows = list(numbered_rows(source))
    groups = _groups([list(_questions(row, report.task)) for _, row in rows])
    contents = [_content(row) for _, row in rows]
    held = _chosen(groups, contents, fraction=fraction, seed=seed, source=source)
    lines = _lines(source, rows)
    places = into or _own_places(report, fraction, seed)
    for place, wanted in zip(places, (False, True), strict=True):
        text = "".join(line + "\n" for at, line in enumerate(lines) if (at in held) is wanted)
        write_whole(place, text.encode())
    plan = SplitPlan(report.path, report.sha256, len(rows), fraction, seed, len(groups))
    return check(places[0], report.task), check(places[1], report.task), plan


def normal(text: str) -> str:
    """A question without what does not change it: case, form of the letters, spacing, punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.sub(r"[\W_]+", " ", folded).strip()
    return words or folded.strip()


def _questions(row: Row, task: str) -> Iterator[str]:
    """What a row asks; rows that share one of these go together."""
    if "messages" in row:
        asked = [normal(turn["content"]) for turn in row["messages"] if turn["role"] == "user"]
        yield from asked[:1]
        yield from (text for text in asked[1:] if _words(text) > _SMALL_TALK)
        return
    if task == "text_completion":
        columns = next(names for names in TEXT_COLUMNS if set(names) == set(row))
        yield normal(row[columns[0]])
        return
    ask = find_task(task).ask
    assert ask is not None  # noqa: S101 - the two tasks without one are above
    yield normal(ask(row).question)
    # A passage that was learned with one question gives away the next.
    yield from (f"{name} {normal(row[name])}" for name in ("question", "context") if name in row)


def _words(text: str) -> int:
    """Words of a text; where a script has no spaces, two characters are about one."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text.split()) + wide // 2


def _groups(questions: Sequence[Sequence[str]]) -> list[list[int]]:
    """Places of the rows, those together that are tied by a question, directly or through others."""
    parent = list(range(len(questions)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[str, int] = {}
    for place, asked in enumerate(questions):
        for question in asked:
            parent[root(place)] = root(first.setdefault(question, place))
    found: dict[int, list[int]] = {}
    for place in range(len(questions)):
        found.setdefault(root(place), []).append(place)
    return list(found.values())


def _chosen(
    groups: list[list[int]], contents: Sequence[str], *, fraction: float, seed: int, source: Path
) -> frozenset[int]:
    """Places of the validation rows: groups by lot, until the share is full."""
    rows = len(contents)
    if rows < 2:
        raise DatasetError(f"{source} has 1 row; a validation split needs at least 2")
    if len(groups) < 2:
        raise DatasetError(
            f"all {rows:,} rows of {source} share their questions, so no part of them can be held out",
            hint="Name validation_data in the job file: rows that ask something else.",
        )

    def lot(group: list[int]) -> str:
        # By content, not by place: the order of the file changes nothing.
        first = min(contents[place] for place in group)
        return hashlib.sha256(f"{seed} {first}".encode()).hexdigest()

    drawn = sorted(groups, key=lot)
    room = min(rows - 1, max(1, round(rows * fraction)))
    held: list[int] = []
    for group in drawn:
        if len(group) <= room - len(held):
            held += group
    smallest = min(map(len, drawn))
    return frozenset(held or next(group for group in drawn if len(group) == smallest))


def _content(row: Row) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)


def _lines(source: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> list[str]:
    """The rows as lines: those of a JSONL file as they are."""
    if format_of(source) != "jsonl":
        return [json.dumps(row, ensure_ascii=False) for _, row in rows]
    with source.open(encoding="utf-8-sig") as stream:
        return [line.strip("\r\n") for line in stream if line.strip()]


def _own_places(report: DatasetReport, fraction: float, seed: int) -> tuple[Path, Path]:
    key = hashlib.sha256(f"{report.sha256} {report.task} {fraction} {seed}".encode()).hexdigest()
    stem = Path(report.path).stem
    folder = home() / "split" / key[:16]
    return folder / f"{stem}.train.jsonl", folder / f"{stem}.validation.jsonl"
