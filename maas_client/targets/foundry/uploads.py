"""Sends a file of rows: whole, or in parts side by side. A killed upload goes on where it stopped.

What is there already is known from a small record beside the user's cache, named by the endpoint
and the file's digest: which parts arrived, or which file they became.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from maas_client.errors import AmbiguousError, NotFoundError, RunDirError, TargetError
from maas_client.jobs import StoredFile, Transfer
from maas_client.spec.home import home
from maas_client.spec.rundir import file_digest, read_json, write_json
from maas_client.targets.foundry import words
from maas_client.targets.foundry.pages import pages
from maas_client.transport import Slice, Transport

WHOLE_UP_TO = 64 * 1000 * 1000
"""A larger file goes in parts."""
PART = 16 * 1024 * 1024
"""The service takes parts of up to 64 MB; smaller ones lose less when a line breaks."""
_AT_ONCE = 4
_BLOCK = 1024 * 1024
_PURPOSE = "fine-tune"
_GONE = frozenset({400, 404, 409, 410})
"""What a service says of an upload that it has forgotten, cancelled or completed."""
_TELL_EVERY = 0.2
_READY_SECONDS = 600.0

OnTransfer = Callable[[Transfer], None]


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one file at one endpoint. No secret is in it."""

    endpoint: str
    name: str
    bytes: int
    sha256: str
    file_id: str = ""
    upload_id: str = ""
    expires_at: float = 0.0
    part_bytes: int = 0
    parts: dict[str, str] = field(default_factory=dict)
    """Number of a part, from 0 -> its id."""


@dataclass(frozen=True, slots=True)
class Load:
    """A file on its way."""

    file: Path
    name: str
    size: int
    sha256: str
    stamp: int
    """When it was last written."""


class Uploads:
    """The uploads of one endpoint.

    Args:
        line: to the service.
        endpoint: its address; what is known of one is not used for another.
        part_bytes: size of a part.
        whole_up_to: files up to this size go in one request.
        folder: where the records are.
    """

    def __init__(
        self,
        line: Transport,
        endpoint: str,
        *,
        part_bytes: int = PART,
        whole_up_to: int = WHOLE_UP_TO,
        folder: Path | None = None,
    ) -> None:
        self._line = line
        self._endpoint = endpoint
        self._part = part_bytes
        self._whole = whole_up_to
        self._folder = folder or home() / "uploads"

    def send(
        self, file: Path, *, sha256: str | None = None, on_transfer: OnTransfer = lambda _: None
    ) -> StoredFile:
        """The file on the service; sent only as far as it is not there.

        Args:
            file: rows, JSONL.
            sha256: what the file was when the plan was made. A large file is then not read to know it:
                it is read while it goes, and nothing is made of its parts if it is another one.
            on_transfer: told how far it has come.

        Raises:
            TargetError: the file is not what it was, or did not arrive as it is.
        """
        load = _load(file, sha256, large=self._whole)
        with self._record(load) as place:
            record = self._read(place, load)
            if (there := self._known(record)) is not None:
                on_transfer(Transfer(load.name, load.size, load.size, note="already there"))
                return there
            meter = Meter(load.name, load.size, on_transfer)
            stored = self._send(load, place, record, meter)
            _same(load)
            if stored.bytes != load.size:
                raise TargetError(
                    f"{load.name}: {stored.bytes:,} bytes arrived of {load.size:,}",
                    hint="Try again; the broken file can be deleted with `maas files delete`.",
                )
            write_json(place, asdict(replace(_blank(record), file_id=stored.id)))
            meter.end()
            return self._ready(stored)

    def forget(self, file_id: str) -> None:
        """A file was deleted: it is to be sent again when it is asked for."""
        for place in self._folder.glob("*.json"):
            with contextlib.suppress(RunDirError):
                if read_json(place).get("file_id") == file_id:
                    place.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _record(self, load: Load) -> Iterator[Path]:
        """Where the file's record is; one process at a time has it."""
        words_of = f"{self._endpoint}\n{load.name}\n{load.sha256}"
        place = self._folder / f"{hashlib.sha256(words_of.encode()).hexdigest()[:32]}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_suffix(".lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other sends the same file: it is there after
            yield place

    def _read(self, place: Path, load: Load) -> Record:
        fresh = Record(self._endpoint, load.name, load.size, load.sha256)
        with contextlib.suppress(RunDirError, TypeError):
            found = Record(**read_json(place))
            if replace(_blank(found), file_id="") == fresh:
                return found
        return fresh

    def _known(self, record: Record) -> StoredFile | None:
        """The file that an earlier upload made, if it still is what it was."""
        if not record.file_id:
            return None
        try:
            there = words.stored_file(self._line.get(f"/files/{record.file_id}"))
        except NotFoundError:
            return None
        same = (there.name, there.bytes) == (record.name, record.bytes)
        return self._ready(there) if same and there.status not in ("error", "deleted") else None

    def _send(self, load: Load, place: Path, record: Record, meter: Meter) -> StoredFile:
        if load.size <= self._whole:
            return self._send_whole(load, meter)
        try:
            return self._send_parts(load, place, record, meter)
        except NotFoundError as error:
            if error.code == "no_uploads":
                return self._send_whole(_load(load.file, load.sha256, large=load.size), meter)
            raise

    def _send_whole(self, load: Load, meter: Meter) -> StoredFile:
        part = Slice("file", load.file, load.name, 0, load.size, meter.add)
        for _ in range(3):
            try:
                raw = self._line.upload("/files", {"purpose": _PURPOSE}, part, again="never")
            except AmbiguousError as error:
                lost = error
                if (there := self._find(load)) is not None:
                    return there
            else:
                return words.stored_file(raw)
        raise lost

    def _send_parts(self, load: Load, place: Path, record: Record, meter: Meter) -> StoredFile:
        goes_on = bool(record.upload_id) and record.part_bytes == self._part
        if goes_on and (not record.expires_at or time.time() < record.expires_at):
            try:
                return self._parts_of(load, place, record, meter)
            except TargetError as error:
                if error.status not in _GONE:
                    raise
                meter.restart()
        return self._parts_of(load, place, self._begin(load, record), meter)

    def _begin(self, load: Load, record: Record) -> Record:
        body = {
            "bytes": load.size,
            "filename": load.name,
            "mime_type": "application/jsonl",
            "purpose": _PURPOSE,
        }
        try:
            raw = self._line.post("/uploads", body, again="always")
        except NotFoundError as error:
            error.code = "no_uploads"  # a service that does not have them takes the file whole
            raise
        return replace(
            _blank(record),
            file_id="",
            upload_id=raw["id"],
            expires_at=float(raw.get("expires_at") or 0),
            part_bytes=self._part,
        )

    def _parts_of(self, load: Load, place: Path, record: Record, meter: Meter) -> StoredFile:
        """Send the parts that are missing, and make a file of all."""
        write_json(place, asdict(record))
        parts = dict(record.parts)
        guard = threading.Lock()
        count = -(-load.size // self._part)
        meter.has(sum(self._size(load, int(number)) for number in parts))

        def send(number: int) -> None:
            part = Slice(
                "data",
                load.file,
                load.name,
                number * self._part,
                self._size(load, number),
                meter.add,
            )
            raw = self._line.upload(f"/uploads/{record.upload_id}/parts", {}, part)
            with guard:
                parts[str(number)] = raw["id"]
                write_json(place, asdict(replace(record, parts=parts)))

        with _pool() as pool:
            digests = pool.submit(_digests, load.file)
            missing = [number for number in range(count) if str(number) not in parts]
            _all([pool.submit(send, number) for number in missing])
            ids = [parts[str(number)] for number in range(count)]
            sha256, md5 = digests.result()
        if sha256 != load.sha256:
            with contextlib.suppress(TargetError):  # it ends by itself, too
                self._line.post(f"/uploads/{record.upload_id}/cancel", {}, again="always")
            raise _another(load.file)
        return self._complete(load, record.upload_id, {"part_ids": ids, "md5": md5})

    def _complete(self, load: Load, upload: str, body: dict[str, Any]) -> StoredFile:
        try:
            raw = self._line.post(f"/uploads/{upload}/complete", body, again="always")
        except TargetError as error:
            # An answer that was lost before: the upload is over, and its file is there.
            if error.status in _GONE and (there := self._find(load)) is not None:
                return there
            raise
        if raw.get("status") != "completed" or not raw.get("file"):
            raise TargetError(f"{load.name}: the upload is {raw.get('status')}, not completed")
        return words.stored_file(raw["file"])

    def _size(self, load: Load, number: int) -> int:
        return min(self._part, load.size - number * self._part)

    def _find(self, load: Load) -> StoredFile | None:
        """A file of that name with those very bytes, after an answer was lost: read, to be sure."""
        for raw in pages(self._line, "/files", {"purpose": _PURPOSE}):
            there = words.stored_file(raw)
            if (there.name, there.bytes) != (load.name, load.size):
                continue
            digest = hashlib.sha256()
            for chunk in self._line.read(f"/files/{there.id}/content"):
                digest.update(chunk)
            if digest.hexdigest() == load.sha256:
                return there
        return None

    def _ready(self, there: StoredFile) -> StoredFile:
        """The file when the service has looked at it; Azure takes a moment."""
        ends, pause = time.monotonic() + _READY_SECONDS, 0.1
        while there.status in ("pending", "running") and time.monotonic() < ends:
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
            there = words.stored_file(self._line.get(f"/files/{there.id}"))
        if there.status in ("pending", "running", "error"):
            raise TargetError(
                f"the service reports {there.name} ({there.id}) as {there.status}",
                hint=f"maas validate {there.name} --task chat_completion",
            )
        return there


class Meter:
    """How far an upload has come; many threads add to it."""

    def __init__(self, name: str, total: int, tell: OnTransfer) -> None:
        self._name, self._total, self._tell = name, total, tell
        self._guard = threading.Lock()
        self._began = self._told = time.monotonic()
        self._sent = self._before = 0

    def has(self, count: int) -> None:
        """So many bytes are there from an earlier try."""
        self._sent = self._before = count
        self._say("goes on" if count else "")

    def restart(self) -> None:
        self._sent = self._before = 0

    def add(self, count: int) -> None:
        with self._guard:
            self._sent += count
            now = time.monotonic()
            if now - self._told >= _TELL_EVERY:
                self._told = now
                self._say()

    def end(self) -> None:
        self._sent = self._total
        self._say()

    def _say(self, note: str = "") -> None:
        took = time.monotonic() - self._began
        rate = max(0, self._sent - self._before) / took if took > 0 else 0.0
        left = (self._total - self._sent) / rate if rate > 0 else None
        self._tell(Transfer(self._name, self._sent, self._total, rate, left, note))


def _load(file: Path, sha256: str | None, *, large: int) -> Load:
    """The file as it is; one of more than `large` bytes is taken to be what the plan says, for now."""
    try:
        found = file.stat()
        digest = sha256 if sha256 and found.st_size > large else file_digest(file)
    except OSError as error:
        raise TargetError(f"{file}: {error.strerror}") from error
    if sha256 is not None and digest != sha256:
        raise _another(file)
    return Load(file, file.name, found.st_size, digest, found.st_mtime_ns)


def _another(file: Path) -> TargetError:
    return TargetError(f"{file} is not what it was when the plan was made", hint="Plan again.")


def _same(load: Load) -> None:
    found = load.file.stat()
    if (found.st_size, found.st_mtime_ns) != (load.size, load.stamp):
        raise TargetError(
            f"{load.file} was changed while it was sent", hint="Send it again when it is done."
        )


def _blank(record: Record) -> Record:
    """The same file, with nothing sent."""
    return Record(record.endpoint, record.name, record.bytes, record.sha256, record.file_id)


def _digests(file: Path) -> tuple[str, str]:
    """sha256 and MD5, in one reading."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that are not waited for longer than the part that they are at."""
    pool = ThreadPoolExecutor(_AT_ONCE + 1, thread_name_prefix="upload")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _all(futures: list[Future[Any]]) -> None:
    """Wait for all, or raise the first failure."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
