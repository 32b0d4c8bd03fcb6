"""A record of every request and answer, with the secrets taken out. JSON lines, one for each call.

What identifies a user or opens a door never reaches the file: authorization headers, signatures and keys
are left out by their names, and the twin's own secrets by their values, wherever they stand.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from local_runner.mock_server.wire import Call
from maas_client.spec.rundir import drop_torn_line

REMOVED = "(removed)"
MAX_KEPT = 256 * 1024
"""Bytes of a body that are kept; of a larger one, its size and digest are."""
_MAX_FILE = 256 * 1024 * 1024
"""A journal that is longer makes way for a new one; the one before it is kept."""
_SECRET_HEADER = re.compile(
    r".*(authorization|cookie|secret|password).*|.*[-_]?(key|token)|x-identity-header"
)
_DULL = frozenset(["date", "server", "connection", "accept-encoding"])
_WORDS = (
    r"(primaryKey|secondaryKey|sasToken|keyValue|key|access_?token|refresh_?token|client_?assertion"
    r"|api[-_]?key|subscription-key|token|\w*password|\w*secret|account_?key|\w*access_?key|connection_?string)"
)
_HINTS = ("key", "token", "secret", "password", "assertion", "connection")
"""One of them is in each of those words: looking for them is quicker."""
_IN_JSON = re.compile(rf'("{_WORDS}"\s*:\s*)"(?:[^"\\]|\\.)*"', re.IGNORECASE)
_IN_FORM = re.compile(rf"(^|&)({_WORDS})=[^&]*", re.IGNORECASE)
_SECRET_QUERY = re.compile(rf"sig|{_WORDS}", re.IGNORECASE)
_SIGNATURE = re.compile(r"([?&;]sig=|\bsig%3D)[^&\"'<>\s\\]+", re.IGNORECASE)
_log = logging.getLogger(__name__)
_JWT = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*")


class Journal:
    """Appends to a file."""

    def __init__(self, file: Path, secrets: Iterable[str]) -> None:
        self.file = file
        self._secrets = [text for text in secrets if text]
        self._lock = threading.Lock()
        self._number = _last_number(file)
        self.lost = 0
        """Calls that could not be recorded: their numbers are missing."""
        self._stream = -1
        self._size = 0
        self._open()

    def write(
        self,
        call: Call,
        status: int,
        headers: Mapping[str, str],
        body: bytes | str | dict[str, Any] | None,
        *,
        sent: Sequence[bytes] = (),
        seconds: float,
        fault: str = "",
    ) -> None:
        """Record one call. `status` 0: no answer went out."""
        entry = {
            "at": round(time.time(), 3),
            "ms": round(seconds * 1000, 2),
            "method": call.method,
            "host": call.headers.get("host", ""),
            "path": self.clean(call.asked or call.path),
            "query": self.clean(urlencode(_without_secrets(call.query))),
            "headers": self._kept(call.headers),
            "body": self._body(call.body or b"".join(sent), call.headers.get("content-type", "")),
            "status": status,
            "reply_headers": self._kept(headers),
            "reply": self._body(body, headers.get("content-type", "application/json")),
        }
        if fault:
            entry["fault"] = fault
        with self._lock:
            self._number += 1
            line = json.dumps({"n": self._number, **entry}) + "\n"
            try:
                self._append(line.encode())
            except OSError as error:  # no answer fails because it cannot be recorded
                if not self.lost:
                    _log.warning("the journal cannot be written, and has a gap: %s", error)
                self.lost += 1

    def _append(self, line: bytes) -> None:
        # Straight to the system: what was answered is recorded, even if we are killed now.
        done = os.write(self._stream, line)
        if done < len(line):  # a disk that is nearly full takes a part, which is of no use
            os.ftruncate(self._stream, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += done
        if self._size > _MAX_FILE:
            self._turn()

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REMOVED)
        if "eyJ" in text:
            text = _JWT.sub(REMOVED, text)
        if "sig" in text:
            text = _SIGNATURE.sub(rf"\1{REMOVED}", text)
        return text

    def _clean_fields(self, text: str) -> str:
        """The JSON or form without what its fields' names say is secret."""
        low = text.lower()
        if any(word in low for word in _HINTS):
            text = _IN_JSON.sub(rf'\1"{REMOVED}"', text)
            if "{" not in text:
                text = _IN_FORM.sub(rf"\1\2={REMOVED}", text)
        return text

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self.close()
            self.file.unlink(missing_ok=True)
            self._number = 0
            self._open()

    def close(self) -> None:
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1

    def _kept(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {
            key: REMOVED if _SECRET_HEADER.fullmatch(key) else self.clean(value)
            for key, value in headers.items()
            if key not in _DULL
        }

    def _body(self, body: bytes | str | dict[str, Any] | None, media_type: str) -> Any:
        """As text, or in base64, or by its digest."""
        if not body or isinstance(body, dict):
            return body or None
        data = body.encode() if isinstance(body, str) else body
        if len(data) > MAX_KEPT:
            return digest(data)
        try:
            text = self.clean(data.decode())
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(data).decode()}
        # A blob's content is what the user sent: only the twin's own secrets are taken out of it.
        return text if "octet-stream" in media_type else self._clean_fields(text)

    def _open(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            drop_torn_line(self.file)  # as a full disk, or a machine that went down, leaves it
        self._stream = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._stream).st_size

    def _turn(self) -> None:
        self.close()
        self.file.replace(self.file.with_suffix(".before.jsonl"))
        self._open()


def digest(data: bytes) -> dict[str, Any]:
    """What stands for a body that is too long to keep."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _without_secrets(query: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (key, REMOVED if _SECRET_QUERY.fullmatch(key) else value) for key, value in query.items()
    ]


def _last_number(file: Path) -> int:
    """The number of the last whole line; a killed server may have left half a one."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - 4 * MAX_KEPT))
            lines = stream.read().split(b"\n")
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        if match := re.match(rb'\{"n": (\d+),', line):
            return int(match[1])
    return 0
