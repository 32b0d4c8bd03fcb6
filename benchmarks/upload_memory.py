"""The memory that the mock takes for an upload of 1 GiB: as one request, and in blocks, 16 at once.

python benchmarks/upload_memory.py [--write benchmarks/README.md]
"""

from __future__ import annotations

import datetime as dt
import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import report
from uploads import MIB, Server, our_mock

HEADING = "## Memory of an upload"
SIZE = 1024 * MIB


class Noise(io.RawIOBase):
    """A gibibyte that takes no memory: one piece, again and again."""

    def __init__(self) -> None:
        self._piece = os.urandom(4 * MIB)
        self._left = SIZE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), len(self._piece), self._left)
        buffer[:size] = self._piece[:size]
        self._left -= size
        return size


def memory(server: Server, what: str) -> int:
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) // 1024


def measure(server: Server, *, in_blocks: bool) -> str:
    """A row of the table."""
    before = memory(server, "VmRSS")
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak counts from now on
    began = time.perf_counter()
    name = "blocks" if in_blocks else "whole"
    single = 64 * MIB if in_blocks else SIZE
    with server.client(max_single_put_size=single) as client:
        blob = client.get_blob_client("bench", name)
        stream = io.BufferedReader(Noise(), 4 * MIB)
        data: Any = stream if in_blocks else stream.read()
        began = time.perf_counter()
        blob.upload_blob(data, length=SIZE, max_concurrency=16 if in_blocks else 1)
        took = time.perf_counter() - began
        assert blob.get_blob_properties().size == SIZE  # noqa: S101 - or the figures mean nothing
    peak = memory(server, "VmHWM")
    words = "in blocks of 4 MiB, 16 at once" if in_blocks else "as one request"
    return f"| 1 GiB {words} | {before} | {peak} | {took:.1f} | {SIZE / MIB / took:.0f} |"


def main() -> None:
    parser = report.parser(__doc__)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as home, our_mock(Path(home) / "mock", plain=False) as mock:
        with mock.client() as client:
            client.create_container("bench")
        rows = [measure(mock, in_blocks=False), measure(mock, in_blocks=True)]
    text = "\n".join(
        [
            "| upload over TLS | MiB before | MiB at most | seconds | MiB/s |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"The server's resident memory. {dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()}"
            f" cores, load before {load:.1f}; the client shares them.",
        ]
    )
    report.tell(text, HEADING, given.write)


if __name__ == "__main__":
    main()
