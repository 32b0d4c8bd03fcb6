"""What a job starts from, as a plan records it: its rows, their tokens, and the weights. Data only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from maas_client.spec.dataset import DatasetReport
from maas_client.spec.memory import Shape

_NAMED = 5
"""Lines that are named one by one; the rest are counted."""


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """The weights and tokenizer that a local run starts from."""

    source: str
    """What to load: a folder, or a hub id that is in the cache."""
    label: str
    """In words for people; a stand-in says that it is one."""
    digest: str
    """sha256 over the weights."""
    stand_in: bool = False
    """Whether it is another model than the job names."""
    remarks: tuple[str, ...] = ()
    """What its tokenizer has that the catalogue's model has not."""
    shape: Shape | None = None
    """Its sizes; None where the memory of its architecture is not forecast."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "remarks", tuple(self.remarks))  # JSON has lists
        if isinstance(self.shape, Mapping):
            object.__setattr__(self, "shape", Shape(**self.shape))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Lines:
    """Rows of a file that share a peculiarity: how many, and the lines of the first."""

    count: int = 0
    first: tuple[int, ...] = ()

    @classmethod
    def of(cls, lines: Iterable[int]) -> Lines:
        found = tuple(lines)
        return cls(len(found), found[:_NAMED])

    def __str__(self) -> str:
        """`3 rows (lines 4, 7 and 9)`, or as much of it as is known."""
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        if not self.first:
            return rows
        if len(self.first) == 1 and self.count == 1:
            return f"{rows} (line {self.first[0]})"
        named = ", ".join(map(str, self.first))
        return f"{rows} (lines {named}{', …' if self.count > len(self.first) else ''})"


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of a dataset under one tokenizer and chat template."""

    total: int
    trained: int
    """Tokens that carry loss: assistant turns and their end token."""
    longest: int
    """Tokens of the longest row, before it is cut."""
    truncated_rows: int
    """Rows longer than max_seq_length."""
    counted_by: str
    """The tokenizer in words; a stand-in says that it is one."""
    cut_answers: Lines = field(default_factory=Lines)
    """Rows that are cut inside, or before, something that should be trained."""
    open_ends: Lines = field(default_factory=Lines)
    """Rows with an answer after which the template writes no end token: none is trained."""
    deaf_ends: Lines = field(default_factory=Lines)
    """Rows with an end token at which the model does not stop."""
    system_rows: Lines = field(default_factory=Lines)
    """Rows with a system turn that the template has no place for."""
    spelled: Lines = field(default_factory=Lines)
    """Rows whose words spell a special token, which is what they become."""
    longest_kept: int = 0
    """Tokens of the longest row, after it is cut; 0 where it was not counted."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def token_count(raw: Mapping[str, Any]) -> TokenCount:
    """What `TokenCount.to_json` made."""
    lines = {entry.name for entry in fields(TokenCount) if entry.type == "Lines"}
    read: dict[str, Any] = {
        key: Lines(value["count"], tuple(value["first"])) if key in lines else value
        for key, value in raw.items()
    }
    return TokenCount(**read)


@dataclass(frozen=True, slots=True)
class DataPlan:
    """Rows that a job will read."""

    path: str
    """An absolute path on this disk, or a reference that only the target can read."""
    report: DatasetReport | None = None
    """None where the rows are elsewhere."""
    converted_from: str | None = None
    """The user's own file, where the target does not take its format and `path` is made of it."""

    def to_json(self) -> dict[str, Any]:
        report = self.report
        brief = None
        if report is not None:
            brief = {key: getattr(report, key) for key in ("rows", "bytes", "sha256", "turns")}
        made = {"converted_from": self.converted_from} if self.converted_from else {}
        return {"path": self.path, **(brief or {}), **made}


def data_plan(raw: Mapping[str, Any] | None, task: str) -> DataPlan | None:
    """What `DataPlan.to_json` made; the report comes back without its warnings."""
    if raw is None:
        return None
    if "rows" not in raw:
        return DataPlan(raw["path"])
    brief = {key: raw[key] for key in ("rows", "bytes", "sha256", "turns")}
    report = DatasetReport(path=raw["path"], task=task, **brief)
    return DataPlan(raw["path"], report, raw.get("converted_from"))


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How training and validation rows were made of one file."""

    path: str
    """The user's own file."""
    sha256: str
    rows: int
    fraction: float
    """The share of rows that was asked for."""
    seed: int
    groups: int
    """Sets of rows that share a question, each whole on one side."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
