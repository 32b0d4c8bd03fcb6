"""A journal of what was submitted, written before each request, so that no job is made twice.

One file for each job that was ever meant, under `home()/submissions`: a line before the request
(`intent`), a line after it (`submitted`, with the job's id, or `refused`). The journal never decides
that a job exists; it says what to look for. While somebody submits a job, its file is locked, so two
processes that submit the same job at once are one after the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from maas_client.errors import SettingsError, TargetError
from maas_client.jobs import Job
from maas_client.spec.home import home
from maas_client.spec.rundir import drop_torn_line, read_lines, sync_folder

_TRIES = 4
"""Requests at most, where each before it ended in doubt."""
_LOOKS = 5
"""Looks at the target before a request in doubt is sent again: it may show a job late."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal."""

    key: str
    """What the job carries at its target: the content's digest, or another for a second job."""
    state: Literal["intent", "submitted", "refused"]
    at: float = field(default_factory=time.time)
    """Seconds since 1970, UTC."""
    target: str = ""
    """The target's name, for people who read the file."""
    job: str = ""
    """The id that the target gave, once it did."""
    nonce: str = ""
    """What tells a second job of the same content from the first."""
    new: bool = False
    """Whether a second job was asked for, and nobody has been told of it yet."""


def digest(meaning: Mapping[str, Any]) -> str:
    """The key of everything that makes a job what it is."""
    text = json.dumps(meaning, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Journal:
    """The lines about one job, while this process holds them. Made by `opened` only."""

    def __init__(self, stream: IO[bytes], content: str, last: Entry | None) -> None:
        self._stream = stream
        self._content = content
        self._last = last

    def entry(self, target: str, *, new: bool) -> Entry:
        """What to submit: the job that was meant last, or another one.

        A second job that was asked for and never reported is the one that is asked for again.
        """
        last = self._last
        if last is not None and (not new or (last.state == "intent" and last.new)):
            return replace(last, target=target)
        if not new:
            return Entry(self._content, "refused", target=target)
        nonce = secrets.token_hex(8)
        key = digest({"content": self._content, "nonce": nonce})
        return Entry(key, "refused", target=target, nonce=nonce, new=True)

    def write(self, entry: Entry) -> None:
        """Add a line; it is on the disk when this returns."""
        line = json.dumps(asdict(replace(entry, at=time.time())), ensure_ascii=False)
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


@contextmanager
def opened(content: str) -> Iterator[Journal]:
    """The journal of the job with this key; waits while another process submits the same job.

    Raises:
        SettingsError: it cannot be kept, so nothing should be sent.
    """
    folder = home() / "submissions"
    file = folder / f"{content}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise SettingsError(
            f"the journal of submissions cannot be kept: {error}",
            hint="Set MAAS_HOME to a folder that can be written.",
        ) from error
    with os.fdopen(handle, "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        sync_folder(folder)
        drop_torn_line(file)
        yield Journal(stream, content, _last(file))


def exactly_once(
    journal: Journal, entry: Entry, attempt: Callable[[Entry], tuple[Job, bool]]
) -> tuple[Job, bool]:
    """Make sure that the job exists once; returns it, and whether it was there before.

    Args:
        journal: what is known of the job.
        entry: from `journal.entry`.
        attempt: looks the job up and sends it where it is not there. It is told what is known: an
            `intent` may have been done already.

    Raises:
        TargetError: refused, or still in doubt after a few tries; the next call looks again.
    """
    import stamina

    if entry.state != "intent":
        journal.write(replace(entry, state="intent"))
    known, tries = entry, 0
    try:
        for turn in stamina.retry_context(
            on=_may_pass, attempts=_TRIES, timeout=None, wait_initial=0.2
        ):
            tries = turn.num
            with turn:
                job, found = attempt(known if turn.num == 1 else replace(known, state="intent"))
                found = found and turn.num == 1
    except TargetError as error:
        # What an earlier try may have done is not undone by a refusal of this one.
        in_doubt = entry.state == "intent" or tries > 1 or error.may_pass
        if not in_doubt:
            journal.write(replace(entry, state="refused", new=False))
        raise
    journal.write(replace(entry, state="submitted", job=job.id, new=False))
    return job, found


def look_well(find: Callable[[], Job | None]) -> Job | None:
    """Look a few times, with pauses: what was sent a moment ago may not be shown yet."""
    import stamina

    with suppress(_NotThere):
        for turn in stamina.retry_context(
            on=_NotThere, attempts=_LOOKS, timeout=None, wait_initial=0.2, wait_max=2.0
        ):
            with turn:
                return _there(find())
    return None


def _there(job: Job | None) -> Job:
    if job is None:
        raise _NotThere
    return job


class _NotThere(Exception):  # noqa: N818 - not a fault
    """Not shown, or not yet."""


def _may_pass(error: Exception) -> bool:
    return isinstance(error, TargetError) and error.may_pass


def _last(file: Path) -> Entry | None:
    try:
        lines = list(read_lines(file))
        return Entry(**lines[-1]) if lines else None
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"{file} is broken: {error}",
            hint="Look with `maas jobs list` whether the job is there, then remove the file.",
        ) from error
