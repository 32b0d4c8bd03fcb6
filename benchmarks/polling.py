"""Asking for a job: our mock beside moto's server, and fifty clients that look once a second.

    python benchmarks/polling.py MOTO_SERVER [--write benchmarks/README.md]

MOTO_SERVER is the `moto_server` of a virtual environment of its own (`pip install 'moto[server]'`). There:
the GET of one resource that lies in memory (API Gateway's `GET /restapis/{id}`); ours is `GET …/jobs/{name}`
from SQLite, with a checked token and a journal. Both plain HTTP, rounds take turns. The fifty clients
speak TLS.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report
from tests.mocking import Mock, running_mock
from tests.wire import job_body, place_of, put_rows, token, wait_for
from tests.wire import line_to as tls_line

HEADING = "## Requests, beside moto"
ROUNDS, SECONDS = 3, 5.0
_AUTH = (
    "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/apigateway/aws4_request,"
    " SignedHeaders=host, Signature=x"
)


@contextlib.contextmanager
def moto(server: Path) -> Iterator[str]:
    """moto's server with one REST API; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    process = subprocess.Popen(
        [str(server), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}/restapis"
        made = _until_it_answers(url)
        yield f"{url}/{made['id']}"
    finally:
        process.terminate()
        process.wait()


def _until_it_answers(url: str) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - loopback
        url, method="POST", data=b'{"name": "x", "description": "one resource"}',
        headers={"Authorization": _AUTH, "Content-Type": "application/json"},
    )  # fmt: skip
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return dict(json.loads(answer.read()))
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def load(url: str, header: str, *words: str) -> dict[str, float]:
    """The client in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("load_client.py")),
        url,
        "--header",
        header,
    ]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def job_on(mock: Mock) -> str:
    """A job that is over; its address."""
    import httpx

    plain = mock.state.url.startswith("http:")
    line = (
        httpx.Client(base_url=mock.state.url, headers={"Authorization": f"Bearer {token(mock)}"})
        if plain
        else tls_line(mock)
    )
    with line as client:
        url = f"{place_of(mock)}/jobs/one"
        client.put(url, json=job_body(put_rows(client, mock))).raise_for_status()
        wait_for(client, url)
    return f"{mock.state.url}{url}"


def beside_moto(server: Path, folder: Path) -> str:
    """The table of requests a second."""
    found: dict[tuple[str, int], list[float]] = {}
    options = ("--engine", "simulate", "--simulate-seconds", "0")
    with running_mock(folder / "plain", *options, "--plain") as mock, moto(server) as theirs:
        ours, bearer = job_on(mock), f"Authorization: Bearer {token(mock)}"
        for _ in range(ROUNDS):
            for clients in (1, 16):
                words = ("--clients", str(clients), "--seconds", str(SECONDS))
                for name, url, header in (
                    ("mock", ours, bearer),
                    ("moto", theirs, f"Authorization: {_AUTH}"),
                ):
                    rate = load(url, header, *words)["per_second"]
                    found.setdefault((name, clients), []).append(rate)
    rows = []
    for clients in (1, 16):
        us, them = (statistics.median(found[name, clients]) for name in ("mock", "moto"))
        rows.append(f"| {clients} | {us:,.0f} | {them:,.0f} | {us / them:.1f} |")
    return "\n".join(["| clients | mock, GETs a second | moto, GETs a second | mock / moto |",
                      "|---|---|---|---|", *rows])  # fmt: skip


def once_a_second(folder: Path) -> str:
    """Fifty clients over TLS."""
    options = ("--engine", "simulate", "--simulate-seconds", "0")
    rows = []
    with running_mock(folder / "tls", *options) as mock:
        url, bearer = job_on(mock), f"Authorization: Bearer {token(mock)}"
        words = ("--clients", "50", "--every", "1", "--seconds", "20", "--ca", str(mock.state.ca))
        for _ in range(ROUNDS):
            seen = load(url, bearer, *words)
            rows.append(f"| {seen['requests']:.0f} | {seen['p50_ms']:.1f} | {seen['p99_ms']:.1f} "
                        f"| {seen['max_ms']:.1f} |")  # fmt: skip
    return "\n".join(
        ["| requests in 20 s | p50, ms | p99, ms | longest, ms |", "|---|---|---|---|", *rows]
    )


def run(server: Path) -> str:
    """Both tables."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        requests = beside_moto(server, Path(folder))
        waits = once_a_second(Path(folder))
    shown = [
        str(server.with_name("python")),
        "-c",
        "import importlib.metadata as m; print(m.version('moto'))",
    ]
    version = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
    return "\n".join(
        [
            f"Plain HTTP, kept alive where the server keeps it; medians of {ROUNDS} rounds of "
            f"{SECONDS:.0f} s that take turns; more is better.",
            "", requests, "",
            "Fifty clients over TLS, each asking for a job once a second, three rounds:",
            "", waits, "",
            f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores, shared with the clients, load "
            f"before {before:.1f}; moto {version}, which closes the connection after each answer.",
        ]
    )  # fmt: skip


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("moto_server", type=Path)
    given = parser.parse_args()
    text = run(given.moto_server.absolute())
    report.tell(text, HEADING, given.write)


if __name__ == "__main__":
    main()
