"""Uploads of a training file: our client beside openai-python, into the mock, side by side.

    python -m benchmarks.foundry_uploads [--write benchmarks/README.md]

Both send the same 256 MiB of rows over TLS to one mock, which checks every row. Rounds take turns.
Ours has the file's digest from the plan, as `maas submit` does, and verifies it while the file goes;
openai-python checks nothing.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import httpx
import openai

from benchmarks import report
from benchmarks.uploads import MIB, our_mock
from maas_client.settings import FoundrySettings, find_target
from maas_client.spec.rundir import file_digest
from maas_client.targets.foundry import FoundryTarget
from maas_client.targets.foundry.uploads import Uploads
from maas_client.transport import Transport

HEADING = "## Uploads, beside openai-python"
ROUNDS = 3
SIZE = 256 * MIB

Send = Callable[[Path], None]


def rows(file: Path, size: int = SIZE) -> None:
    """Good rows of so many bytes and some; long ones, so that the mock is soon done with checking."""
    answer = "Left. " * 200_000
    row = (
        '{"messages": [{"role": "user", "content": "Where is tap %d?"}, '
        f'{{"role": "assistant", "content": "{answer}"}}]}}\n'
    )
    with file.open("w") as stream:
        number = made = 0
        while made < size:
            made += stream.write(row % number)
            number += 1


def ways(settings: FoundrySettings, folder: Path, known: str) -> dict[str, Send]:
    """How a file can be sent. Ours knows nothing of the rounds before: each has an empty memory."""
    target = FoundryTarget(settings)
    theirs = openai.OpenAI(
        base_url=settings.base_url,
        api_key=settings.key(),
        max_retries=0,
        http_client=httpx.Client(verify=ssl.create_default_context(cafile=settings.ca)),
    )
    line = Transport(settings.base_url, headers=settings.key_header(), ca=settings.ca, budget=300)

    def ours(*, whole: bool) -> Send:
        def send(file: Path) -> None:
            memory = Path(tempfile.mkdtemp(dir=folder))
            up_to = 2 * SIZE if whole else 0
            uploads = Uploads(line, settings.base_url, whole_up_to=up_to, folder=memory)
            stored = uploads.send(file, sha256=known)
            target.delete_file(stored.id)

        return send

    def create(file: Path) -> None:
        with file.open("rb") as stream:
            theirs.files.delete(theirs.files.create(file=stream, purpose="fine-tune").id)

    def chunked(file: Path) -> None:
        done = theirs.uploads.upload_file_chunked(
            file=file, mime_type="application/jsonl", purpose="fine-tune"
        )
        assert done.file is not None  # noqa: S101 - it raises where it fails
        theirs.files.delete(done.file.id)

    return {
        "ours, in parts": ours(whole=False),
        "ours, whole": ours(whole=True),
        "openai-python, uploads.upload_file_chunked": chunked,
        "openai-python, files.create": create,
    }


def measure(every: dict[str, Send], file: Path) -> dict[str, tuple[float, float, float]]:
    """Median seconds, those of the client's processor, and the most MiB on top of what it had."""
    took: dict[str, list[float]] = {name: [] for name in every}
    worked: dict[str, list[float]] = {name: [] for name in every}
    grew: dict[str, float] = dict.fromkeys(every, 0.0)
    for number in range(ROUNDS):
        for name in every if number % 2 == 0 else [*every][::-1]:
            with _Memory() as memory:
                began, busy = time.perf_counter(), time.process_time()
                every[name](file)
                took[name].append(time.perf_counter() - began)
                worked[name].append(time.process_time() - busy)
            grew[name] = max(grew[name], memory.grew)
    return {
        name: (statistics.median(took[name]), statistics.median(worked[name]), grew[name])
        for name in every
    }


class _Memory:
    """What the process takes while the block lasts, looked at often."""

    grew = 0.0

    def __enter__(self) -> _Memory:
        self._over = threading.Event()
        self._before = _resident()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.grew = max(self.grew, _resident() - self._before)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def run() -> str:
    """The table, with what it was measured on."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        home, file = Path(folder) / "mock", Path(folder) / "rows.jsonl"
        rows(file)
        os.environ["MAAS_MOCK_HOME"] = str(home)
        with our_mock(home, plain=False):
            settings = find_target("mock-foundry")
            assert isinstance(settings, FoundrySettings)  # noqa: S101 - its kind
            found = measure(ways(settings, Path(folder), file_digest(file)), file)
    lines = [
        f"| {name} | {seconds:.1f} | {SIZE / MIB / seconds:.0f} | {busy:.1f} | {grew:.0f} |"
        for name, (seconds, busy, grew) in found.items()
    ]
    return "\n".join(
        [
            f"{SIZE // MIB} MiB of rows, medians of {ROUNDS} rounds that take turns.",
            "",
            "| upload over TLS | seconds | MiB/s | of the client's processor | MiB of memory on top |",
            "|---|---|---|---|---|",
            *lines,
            "",
            "The seconds hold the mock's own check of every row, the same for each; ours also hold the"
            f" hashes. {dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores shared with the mock,"
            f" load before {before:.1f}; Python {platform.python_version()}, openai {version('openai')}.",
        ]
    )


def main() -> None:
    parser = report.parser(__doc__)
    given = parser.parse_args()
    text = run()
    report.tell(text, HEADING, given.write)


if __name__ == "__main__":
    sys.exit(main())
