"""Files of rows that are not JSONL: csv, tsv and parquet, a record at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maas_client.errors import DatasetError
from maas_client.spec.rows import Fault
from maas_client.spec.task_rows import STRUCTURED, listed

FORMATS = ("jsonl", "csv", "tsv", "parquet")
"""By the file's ending; any other ending is JSONL."""

Record = dict[str, Any] | Fault
MAX_CELL = 8 * 1024 * 1024


def format_of(path: Path) -> str:
    """How a file's rows are written."""
    ending = path.suffix.lower().removeprefix(".")
    return ending if ending in FORMATS else "jsonl"


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """Each record with the line that it begins on (parquet: its number), or what is wrong with it.

    Raises:
        DatasetError: the file cannot be read at all.
    """
    if format_of(path) == "parquet":
        yield from _parquet(path)
    else:
        yield from _separated(path, "\t" if format_of(path) == "tsv" else ",")


def _separated(path: Path, separator: str) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(MAX_CELL)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True)
        line, header = 1, None
        try:
            for cells in reader:
                if cells and header is None:
                    header = [name.strip() for name in cells]
                    if (fault := _header_fault(header)) is not None:
                        yield line, fault
                        return
                elif cells and header is not None:
                    yield line, _record(header, cells)
                line = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            word = "encoding" if isinstance(error, UnicodeDecodeError) else "not_a_table"
            fix = "save the file as UTF-8, a cell with a quote or line break in quotes"
            yield line, Fault(word, f"the file cannot be read from here on: {error}", fix)


def _header_fault(header: list[str]) -> Fault | None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        return Fault("duplicate_key", f"the header names {twice!r} twice", "rename one")
    if "" in header:
        place = header.index("") + 1
        return Fault("columns", f"column {place} has no name", "name it in the first line")
    return None


def _record(header: list[str], cells: list[str]) -> Record:
    if len(cells) != len(header):
        said = f"the row has {len(cells)} cells, the header names {len(header)}"
        return Fault("cells", said, "put a cell that holds the separator in quotes")
    pairs = zip(header, cells, strict=True)
    return {name: listed(cell) if name in STRUCTURED else cell for name, cell in pairs}


def _parquet(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        from pyarrow import ArrowException, parquet  # a hundred megabytes, for one format
    except ImportError as error:
        raise DatasetError(
            f"{path} is parquet, which pyarrow reads, and it is not installed",
            hint='pip install "maas-finetune[parquet]", or save the rows as jsonl, csv or tsv.',
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield (
                        number,
                        {
                            name: listed(value) if name in STRUCTURED else value
                            for name, value in _without_nulls(row).items()
                        },
                    )
    except (ArrowException, OSError) as error:
        raise DatasetError(f"{path} is no parquet file that can be read: {error}") from error


def _without_nulls(value: Any) -> Any:
    """What a row has: in parquet every record has every field, and null where it has none."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
