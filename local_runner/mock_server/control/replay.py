"""A recorded journal played to a mock again: do the same requests still get the same answers?

What changes from run to run is left out of the comparison: times, ids, addresses, request numbers. Ids that
a later request repeats are replaced by those of this run. A request that only asks is asked again until
its answer is the recorded one or the patience ends, because jobs take their time; of the same question
asked several times in a row, the last answer counts. Faults that were asked for have to happen again; as
questions are not asked as often as they were, one with `skip` or `rate` may meet another request.
Events on OpenAI's wire are counted, not compared: when a checkpoint is noticed is a matter of moments.
"""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_runner.mock_server.control.journal import REMOVED
from maas_client.errors import MaasError

Entry = Mapping[str, Any]
Send = Callable[[str, str, Mapping[str, str], bytes], tuple[int, Mapping[str, str], bytes]]
"""Method, path with query, headers and body to status, headers and body; or raises NoAnswerError."""

_ID = re.compile(
    r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
    # of OpenAI's wire: files, jobs, and the rest; and at the end of a tuned model's name
    r"|\b(?:file-|ftjob-|upload_|part_|chatcmpl-)[0-9a-f]{32}|\b(?:ftevent-|ftckpt_)[0-9a-f]{24}"
    r"|(?<=:)[0-9a-f]{12}(?![0-9a-f])",
    re.IGNORECASE,
)
_VOLATILE = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)?"), "{time}"),
    (re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"), "{time}"),
    (re.compile(r"\b0x[0-9A-F]{8,}"), "{etag}"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "{id}"),
    (re.compile(r"^[0-9a-f]{16}$"), "{id}"),
    (re.compile(r"([?&;]|amp;)(sig|se|st|ske|skt)=[^&\"<\s]+"), r"\1\2={signature}"),
)
_NUMBERS = frozenset(
    ("created", "expires_on", "expires_in", "real", "virtual", "created_at", "finished_at", "expires_at",
     "estimated_finish")
)  # fmt: skip
"""Keys whose numbers are times."""
_COMPARED = ("location", "azure-asyncoperation", "x-ms-error-code", "retry-after-ms", "content-range",
             "content-md5", "content-type", "x-ms-meta-upload_status")  # fmt: skip
_SENT = re.compile(r"content-type|accept|x-ms-(?!client-request-id|date).*|if-.*|range|azureml-.*")
_NAMES = re.compile("<Name>([^<]*)</Name>")
_STAGES = ("Creating", "Queued", "Running", "InProgress", "CancelRequested", "Finalizing",
           "validating_files", "queued", "running", "pausing", "resuming")  # fmt: skip
_EVENT = "data: "
_PATIENCE = 30.0
_PAUSE = 0.05


class NoAnswerError(Exception):
    """The connection broke before the answer was whole."""


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that is not the recorded one."""

    entry: Entry
    words: str

    def __str__(self) -> str:
        return f"#{self.entry['n']} {self.entry['method']} {self.entry['path']}: {self.words}"


@dataclass
class Replay:
    """One playing of a journal.

    Args:
        send: sends a request to the mock.
        host: the mock's, with its port.
        login: the headers that open the door of an entry's path.
        patience: seconds to wait for an answer that takes its time.
    """

    send: Send
    host: str
    login: Callable[[Entry, str], Mapping[str, str]]
    patience: float = _PATIENCE
    ids: dict[str, str] = field(default_factory=dict)
    """Recorded ids, and those of this run."""
    left_out: int = 0
    """Entries that cannot be sent again: their body was not kept."""

    def play(self, entries: Sequence[Entry]) -> Iterator[Difference]:
        """Send every request in its order; yields what differs."""
        for entry in condensed(entries):
            if _body_is_missing(entry):
                self.left_out += 1
                continue
            if words := self._play(entry):
                yield Difference(entry, words)

    def _play(self, entry: Entry) -> str:
        """What differs; empty if nothing does."""
        end = time.monotonic() + self.patience
        while True:
            known = dict(self.ids)
            words = self._try(entry)
            if not words or entry["method"] not in ("GET", "HEAD") or time.monotonic() > end:
                return words
            self.ids = known  # the next answer may have other ids in those places
            time.sleep(_PAUSE)

    def _try(self, entry: Entry) -> str:
        """Send the request once, and compare."""
        breaks = entry["status"] == 0 or entry.get("fault") == "cut"
        try:
            answer = self._send(entry)
        except NoAnswerError as error:
            return "" if breaks else f"status {entry['status']} is now no answer: {error}"
        if breaks:
            return f"the connection broke, as was asked for, and now there is status {answer[0]}"
        return self._compare(entry, *answer)

    def _send(self, entry: Entry) -> tuple[int, Mapping[str, str], str]:
        path = self._ours(entry["path"], entry["host"])
        query = self._ours(entry["query"], entry["host"])
        pairs = [pair for pair in query.split("&") if pair and not pair.startswith("sig=")]
        headers = {k: v for k, v in entry["headers"].items() if _SENT.fullmatch(k)}
        headers |= self.login(entry, path)
        if not _is_local(entry["host"]):  # recorded through the proxy: the name decides
            headers |= {"host": entry["host"]}
        target = urllib.parse.quote(path, safe="/:$()!*,;=@~'+") + (
            f"?{'&'.join(pairs)}" if pairs else ""
        )
        status, answered, body = self.send(entry["method"], target, headers, self._body(entry))
        return status, {key.lower(): value for key, value in answered.items()}, _text(body)

    def _body(self, entry: Entry) -> bytes:
        body = entry["body"]
        if isinstance(body, dict):
            return base64.b64decode(body["base64"])
        return self._ours(_with_dice(entry), entry["host"]).encode()

    def _ours(self, text: str, host: str) -> str:
        """The recorded text with this run's address and ids."""
        if _is_local(host):
            quoted = urllib.parse.quote(host, safe="")
            text = text.replace(host, self.host).replace(quoted, self.host.replace(":", "%3A"))
        return _ID.sub(lambda match: self.ids.get(match[0], match[0]), text)

    def _compare(self, entry: Entry, status: int, headers: Mapping[str, str], body: str) -> str:
        if status != entry["status"]:
            return f"status {entry['status']} is now {status}: {body[:300]}"
        is_blob = ".blob." in entry["host"] + entry["path"]
        if words := self._compare_headers(entry, headers, is_blob=is_blob):
            return words
        recorded = entry["reply"] or ""
        if entry["method"] == "HEAD":
            return ""
        if isinstance(recorded, dict):  # only its size was kept, or it was no text
            return ""
        if is_blob and "<EnumerationResults" in recorded:
            return self._differs(_NAMES.findall(recorded), _NAMES.findall(body), "", "the list")
        if is_blob and status < 400:
            return ""
        return self._differs(_parsed(recorded), _parsed(body), entry["host"], "")

    def _compare_headers(self, entry: Entry, headers: Mapping[str, str], *, is_blob: bool) -> str:
        for key in _COMPARED:
            if is_blob and key.startswith("content-"):
                continue  # what the engine wrote has times in it, and so another length
            before, now = entry["reply_headers"].get(key, ""), headers.get(key, "")
            if not self._same(before, now, entry["host"]):
                return f"header {key}: {before!r} is now {now!r}"
        return ""

    def _differs(self, before: Any, now: Any, host: str, where: str) -> str:
        if isinstance(before, dict) and isinstance(now, dict):
            if before.keys() != now.keys():
                odd = sorted(before.keys() ^ now.keys())
                return f"{where or 'the answer'} has other keys: {', '.join(odd)}"
            parts = ((f"{where}.{key}", before[key], now[key]) for key in before.keys() - _NUMBERS)
        elif isinstance(before, list) and isinstance(now, list):
            if len(before) != len(now):
                return f"{where or 'the answer'} has {len(now)} entries, and had {len(before)}"
            if all(map(_is_event, [*before, *now])):
                for old, new in zip(before, now, strict=True):
                    self.ids.setdefault(old["id"], new["id"])  # the next page is asked for by it
                return ""
            parts = (
                (f"{where}[{i}]", *pair) for i, pair in enumerate(zip(before, now, strict=True))
            )
        else:
            if self._same(before, now, host):
                return ""
            return f"{where.lstrip('.') or 'the answer'}: {before!r} is now {now!r}"
        # To the end, whatever differs: later requests need the ids of all of it.
        found = [self._differs(old, new, host, place) for place, old, new in parts]
        return next((words for words in found if words), "")

    def _same(self, before: Any, now: Any, host: str) -> bool:
        if not isinstance(before, str) or not isinstance(now, str):
            return bool(before == now)
        if before == REMOVED:
            return bool(now)
        if _is_local(host):
            before, now = before.replace(host, "{host}"), now.replace(self.host, "{host}")
        old, new = _ID.findall(before), _ID.findall(now)
        if _plain(before) != _plain(now) or len(old) != len(new):
            # A stage that the recording saw, and this run was too quick for.
            return before in _STAGES and now not in _STAGES
        return all(self.ids.setdefault(a, b) == b for a, b in zip(old, new, strict=True))


def condensed(entries: Sequence[Entry]) -> list[Entry]:
    """The entries without questions that were asked again before anything else was done."""
    kept: list[Entry] = []
    asked: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        if entry["method"] in ("GET", "HEAD") and not entry.get("fault"):
            place = (entry["method"], entry["path"], entry["query"])
            asked.pop(place, None)
            asked[place] = entry
        else:
            kept += [*asked.values(), entry]
            asked = {}
    return [*kept, *asked.values()]


def read(file: Path) -> list[Entry]:
    """The entries of a journal.

    Raises:
        MaasError: it is none.
    """
    entries = []
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                raise MaasError(
                    f"{file}:{number}: this line is no JSON", hint="Is it a journal?"
                ) from error
    except OSError as error:
        raise MaasError(f"{file}: {error.strerror}") from error
    return entries


def _body_is_missing(entry: Entry) -> bool:
    if entry.get("fault") in ("status", "lost-request"):  # nothing was done with it
        return False
    length = entry["headers"].get("content-length", "0")
    body = entry["body"]
    if isinstance(body, dict):
        return "base64" not in body
    return body is None and length not in ("", "0")


def _is_local(host: str) -> bool:
    return re.fullmatch(r"(\d+\.\d+\.\d+\.\d+|localhost|\[::1\]):\d+", host) is not None


def _plain(text: str) -> str:
    for pattern, word in _VOLATILE:
        text = pattern.sub(word, text)
    return _ID.sub("{uuid}", text)


def _parsed(text: str) -> Any:
    if text.startswith(_EVENT):
        parts = (line.removeprefix(_EVENT) for line in text.splitlines() if line)
        # Answers that are made side by side speak in any order, each in its own.
        return sorted(map(_parsed, parts), key=_place)
    try:
        return json.loads(text)
    except ValueError:
        return text


def _with_dice(entry: Entry) -> str:
    """The body that was sent; a job that had no seed gets the one that the dice gave it then."""
    body: str = entry["body"] or ""
    if not entry["path"].endswith("/fine_tuning/jobs") or not isinstance(entry["reply"], str):
        return body
    asked, made = _parsed(body), _parsed(entry["reply"])
    if not isinstance(asked, dict) or not isinstance(made, dict) or asked.get("seed") is not None:
        return body
    return json.dumps(asked | {"seed": made["seed"]}) if "seed" in made else body


def _is_event(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("object") == "fine_tuning.job.event"


def _place(event: Any) -> int:
    """Which of several answers a streamed event is of; what is of all comes last."""
    choices = event.get("choices") if isinstance(event, dict) else None
    return int(choices[0].get("index", 0)) if choices else 1 << 30


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def wears_secret(entry: Entry) -> bool:
    """Whether the recorded request showed credentials of any kind."""
    headers = entry["headers"]
    return (
        REMOVED in (headers.get("authorization"), headers.get("api-key"))
        or "sig=" in entry["query"]
    )
