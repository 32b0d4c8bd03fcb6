"""Uploads with the unmodified azure-storage-blob: into our mock, and into Azurite, side by side.

    python benchmarks/uploads.py /tmp/azurite [--write benchmarks/README.md]

Azurite is installed by npm into the folder that is named, which lies outside the repository. Both servers
keep what they get on the same disk; both speak TLS with the same certificate, or neither does. Rounds take
turns.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.storage.blob import BlobServiceClient

HEADING = "## Uploads, beside Azurite"
MIB = 1024 * 1024
ROUNDS = 3
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""Public: it is in Azurite's documentation."""
_START_SECONDS = 60

Work = Callable[[BlobServiceClient, int], None]


@dataclass(frozen=True)
class Server:
    """A running server and what a client needs."""

    name: str
    url: str
    key: str
    ca: Path
    pid: int

    def client(self, **options: Any) -> BlobServiceClient:
        return BlobServiceClient(
            self.url, credential=self.key, connection_verify=str(self.ca), retry_total=0, **options
        )


@contextlib.contextmanager
def our_mock(home: Path, *, plain: bool) -> Iterator[Server]:
    """`maas mock serve`, in a home of its own."""
    command = [sys.executable, "-m", "local_runner", "mock", "--home", str(home)]
    options = ["--engine", "simulate", *(["--plain"] if plain else [])]
    subprocess.run([*command, "serve", "--detach", *options], check=True, stdout=subprocess.DEVNULL)
    try:
        state = json.loads((home / "server.json").read_text())
        key = json.loads((home / "secrets.json").read_text())["storage_key"]
        url = f"{state['url']}/mockacct.blob.core.local"
        yield Server("mock", url, key, Path(state["ca"]), state["pid"])
    finally:
        subprocess.run([*command, "stop"], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def azurite(folder: Path, data: Path, tls: Path, *, plain: bool) -> Iterator[Server]:
    """Azurite's blob service, persistent, with our certificate."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    main = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    command = ["node", str(main), "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    command += ["--location", str(data), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    if not plain:
        command += ["--cert", str(tls / "server.pem"), "--key", str(tls / "server.key")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        scheme = "http" if plain else "https"
        url = f"{scheme}://127.0.0.1:{port}/devstoreaccount1"
        yield Server("Azurite", url, AZURITE_KEY, tls / "ca.pem", process.pid)
    finally:
        process.terminate()
        process.wait()


def install_azurite(folder: Path) -> str:
    """Install it, unless it is there; its version."""
    package = folder / "node_modules" / "azurite" / "package.json"
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        npm = shutil.which("npm") or "npm"
        command = [npm, "install", "azurite", "--no-fund", "--no-audit", "--silent"]
        subprocess.run(command, cwd=folder, check=True)
    return str(json.loads(package.read_text())["version"])


def measure(servers: list[Server], works: dict[str, Work]) -> dict[tuple[str, str], float]:
    """Median seconds by work and server; the servers take turns."""
    took: dict[tuple[str, str], list[float]] = {}
    clients = {server.name: server.client(max_single_put_size=4 * MIB) for server in servers}
    for client in clients.values():
        client.create_container("bench")
        client.get_blob_client("bench", "warm").upload_blob(b"x")
    for number in range(ROUNDS):
        for work, run in works.items():
            turn = servers if number % 2 == 0 else servers[::-1]
            for server in turn:
                began = time.perf_counter()
                run(clients[server.name], number)
                took.setdefault((work, server.name), []).append(time.perf_counter() - began)
    for client in clients.values():
        client.close()
    return {key: statistics.median(values) for key, values in took.items()}


def works() -> dict[str, Work]:
    """What is uploaded."""
    large, small = os.urandom(256 * MIB), os.urandom(100 * 1000)

    def one_large(client: BlobServiceClient, number: int) -> None:
        client.get_blob_client("bench", f"large-{number}").upload_blob(large, max_concurrency=8)

    def many_small(client: BlobServiceClient, number: int) -> None:
        def put(index: int) -> None:
            client.get_blob_client("bench", f"small-{number}/{index}").upload_blob(small)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(200)))

    return {
        "256 MiB in blocks of 4 MiB, 8 at once": one_large,
        "200 files of 100 kB, 8 at once": many_small,
    }


def run(folder: Path) -> str:
    """The table, with what it was measured on."""
    version = install_azurite(folder)
    before = os.getloadavg()[0]
    rows = []
    for plain in (False, True):
        with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
            base = Path(home)
            mock = stack.enter_context(our_mock(base / "mock", plain=plain))
            tls = base / "mock" / "tls"
            other = stack.enter_context(azurite(folder, base / "azurite", tls, plain=plain))
            medians = measure([mock, other], works())
        for work in works():
            ours, theirs = medians[work, "mock"], medians[work, "Azurite"]
            kind = "plain HTTP" if plain else "TLS"
            rows.append(f"| {work}, {kind} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} |")
    command = [shutil.which("node") or "node", "--version"]
    node = subprocess.run(command, capture_output=True, text=True, check=True)
    return "\n".join(
        [
            f"Seconds, medians of {ROUNDS} rounds that take turns; less is better.",
            "",
            "| upload | mock | Azurite | Azurite / mock |",
            "|---|---|---|---|",
            *rows,
            "",
            f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores"
            f" ({_processor()}), load before {before:.1f}; Python {platform.python_version()},"
            f" Azurite {version} on node {node.stdout.strip()}, its storage on the same disk.",
        ]
    )


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("Azurite did not start.")


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    import report  # others import this module as a package's; only the script says anything

    parser = report.parser(__doc__)
    parser.add_argument("azurite", type=Path, help="a folder outside the repository")
    given = parser.parse_args()
    text = run(given.azurite.resolve())
    report.tell(text, HEADING, given.write)


if __name__ == "__main__":
    main()
