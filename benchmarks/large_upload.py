"""1 GiB of rows by `maas files upload` into the mock: time, memory of both, and after a kill -9 half-way.

    python -m benchmarks.large_upload [--write benchmarks/README.md]

The mock checks every row. The service takes files of up to 512 MB; `maas mock set --file-bytes` takes more.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.foundry_uploads import rows
from benchmarks.uploads import MIB, Server, our_mock

HEADING = "## An upload of 1 GiB, and one that is killed"
SIZE = 1024 * MIB
_MAAS = (sys.executable, "-m", "maas_client")


def upload(file: Path, home: Path) -> subprocess.Popen[bytes]:
    """`maas files upload`, with what it remembers in a home of its own."""
    command = [*_MAAS, "files", "upload", str(file), "--target", "mock-foundry", "--json"]
    return subprocess.Popen(
        command,
        env=os.environ | {"MAAS_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def end(child: subprocess.Popen[bytes]) -> tuple[dict[str, Any], int]:
    """What it said, and the MiB that it took at most."""
    assert child.stdout is not None  # noqa: S101 - opened as a pipe
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    assert child.returncode == 0, said  # noqa: S101 - or the figures mean nothing
    return json.loads(said), usage.ru_maxrss // 1024


def parts(home: Path) -> int:
    """Parts that have arrived, as the client knows."""
    found = [json.loads(file.read_text()) for file in (home / "uploads").glob("*.json")]
    return sum(len(record["parts"]) for record in found)


def posts(server_home: Path) -> int:
    """Parts that were sent, as the mock's journal has them."""
    lines = (server_home / "journal.jsonl").read_text().splitlines()
    return sum("/parts" in json.loads(line)["path"] for line in lines)


def peak(server: Server) -> int:
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def forget(number: str) -> None:
    command = [*_MAAS, "files", "delete", number, "--target", "mock-foundry"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(server: Server, folder: Path, mock: Path) -> list[str]:
    """The rows of the table."""
    large, small = folder / "large.jsonl", folder / "small.jsonl"
    rows(large, SIZE)
    rows(small, 64 * MIB)
    lines = []
    for file, what in ((small, "64 MiB"), (large, "1 GiB")):
        before, began = posts(mock), time.perf_counter()
        stored, took = end(upload(file, folder / what))
        seconds, sent = time.perf_counter() - began, posts(mock) - before
        assert stored["bytes"] == file.stat().st_size  # noqa: S101 - the same
        lines.append(_row(what, seconds, file.stat().st_size / MIB, sent, took, peak(server)))
    began = time.perf_counter()
    end(upload(large, folder / "1 GiB"))
    lines.append(_row("the same again", time.perf_counter() - began, 0, 0, 0, peak(server)))
    forget(stored["id"])
    home, before = folder / "killed", posts(mock)
    child = upload(large, home)
    while parts(home) < SIZE // (32 * MIB):  # half of them
        assert child.poll() is None  # noqa: S101 - too quick to be killed
        time.sleep(0.05)
    child.kill()
    child.communicate()
    there, began = parts(home), time.perf_counter()
    stored, took = end(upload(large, home))
    left = (SIZE // MIB) - 16 * there
    seconds, sent = time.perf_counter() - began, posts(mock) - before
    name = f"1 GiB, killed with {there} parts there, then run again"
    lines.append(_row(name, seconds, left, sent, took, peak(server)))
    forget(stored["id"])
    return lines


def _row(what: str, seconds: float, mib: float, sent: int, *memory: int) -> str:
    rate = f"{mib / seconds:.0f}" if mib else ""
    client, mock = memory
    return f"| {what} | {seconds:.1f} | {rate} | {sent} | {client or ''} | {mock} |"


def run() -> str:
    """The table, with what it was measured on."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = folder / "mock"
        os.environ["MAAS_MOCK_HOME"] = str(home)
        with our_mock(home, plain=False) as server:
            command = [sys.executable, "-m", "local_runner", "mock", "--home", str(home), "set"]
            command += ["--file-bytes", str(2 * SIZE)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            lines = measure(server, folder, home)
    return "\n".join(
        [
            "`maas files upload`, over TLS, in parts of 16 MiB; the last seconds of each are the mock's own "
            "check of every row.",
            "",
            "| upload | seconds | MiB/s | parts sent | client, MiB at most | mock, MiB at most so far |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores shared with the mock and others, "
            f"load before {before:.1f}.",
        ]
    )


def main() -> None:
    parser = report.parser(__doc__)
    given = parser.parse_args()
    text = run()
    report.tell(text, HEADING, given.write)


if __name__ == "__main__":
    sys.exit(main())
