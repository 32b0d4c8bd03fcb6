"""HTTP with auth, retries and redaction. The only file that knows httpx."""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import re
import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maas_client.errors import (
    AmbiguousError,
    AuthError,
    ConflictError,
    NotFoundError,
    TargetError,
    UnreachableError,
)

if TYPE_CHECKING:
    import httpx

Again = Literal["always", "untouched", "never"]
"""When a request is sent again: `always` where twice does what once does; `untouched` where the
service said that it had no time for it; `never` where twice would cost, as with a new job: then
an answer that was lost is an `AmbiguousError`."""

_BUSY = frozenset({429, 503})
_LATER = frozenset({408, 429, 500, 502, 503, 504})
_KINDS: Mapping[int, type[TargetError]] = {
    401: AuthError,
    403: AuthError,
    404: NotFoundError,
    409: ConflictError,
}
_REQUEST_IDS = ("x-ms-request-id", "apim-request-id", "x-request-id")
_SECRETS = (
    re.compile(r"(?i)(bearer )[\w.~+/=-]{8,}"),
    re.compile(
        r"(?i)(\b(?:sig|api-key|api_key|subscription-key|password|secret)[=:] ?)[^&\s'\",]+"
    ),
    re.compile(r"()\bsk-[\w*-]{8,}"),
    re.compile(r"()eyJ[\w-]+\.[\w-]+\.[\w-]*"),
)
_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of a file that are sent as one form field, read while they are sent."""

    field: str
    file: Path
    name: str
    """What the service is to call it."""
    start: int
    size: int
    on_bytes: Callable[[int], None] = lambda _: None
    """Told how many bytes went out; less than none where they have to go again."""


class Transport:
    """A keep-alive connection to one service. Threads may share it.

    Args:
        base_url: without a trailing slash.
        headers: sent with each request; secrets among them never reach an error message.
        ca: PEM file of the authority that signed the service's certificate; None trusts the
            system's. httpx ignores REQUESTS_CA_BUNDLE, so the file is given as an SSLContext.
        timeout: seconds that the service may be silent.
        budget: seconds that all tries of one request may take together, answers included.
        follow_redirects: go where an answer points; secrets are shown to no other host.
        transport: a stand-in for the network, for tests.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        ca: str | None = None,
        timeout: float = 120.0,
        budget: float = 60.0,
        follow_redirects: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        import httpx  # a sixth of a second that `maas --help` need not pay

        context: ssl.SSLContext | bool = True
        if ca is not None:
            context = ssl.create_default_context(cafile=ca)
        self._secrets = tuple(value for value in (headers or {}).values() if len(value) >= 8)
        self._budget = budget
        self._client = httpx.Client(
            base_url=base_url,
            headers=dict(headers or {}),
            verify=context,
            timeout=timeout,
            follow_redirects=follow_redirects,
            transport=transport,
        )

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """GET, and return the JSON of the answer.

        Raises:
            TargetError: by the answer's status, with its message and request id.
        """
        return self._json(
            path, self._send("GET", path, "always", params=dict(params) if params else None)
        )

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, again: Again = "untouched"
    ) -> Any:
        """POST JSON, and return the JSON of the answer.

        Raises:
            AmbiguousError: the answer was lost, and the request is never to be sent twice.
            TargetError: by the answer's status, with its message and request id.
        """
        return self._json(path, self._send("POST", path, again, json=dict(body or {})), again)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """PUT JSON, and return the JSON of the answer."""
        return self._json(path, self._send("PUT", path, "always", json=dict(body)))

    def delete(self, path: str) -> None:
        """DELETE."""
        self._send("DELETE", path, "always")

    def upload(
        self, path: str, fields: Mapping[str, str], part: Slice, *, again: Again = "always"
    ) -> Any:
        """POST a form with a slice of a file, never whole in memory; returns the answer's JSON."""
        return self._json(path, self._send("POST", path, again, form=_Form(fields, part)))

    def read(self, path: str) -> Iterator[bytes]:
        """GET, and yield the bytes of the answer as they come."""
        with self._errors(), self._client.stream("GET", path) as response:
            if not response.is_success:
                response.read()
            self._raise_for(response)
            yield from response.iter_bytes(_CHUNK)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """POST JSON, and yield the JSON of each server-sent event until `[DONE]`."""
        with self._errors(), self._client.stream("POST", path, json=dict(body)) as response:
            if not response.is_success:
                response.read()
            self._raise_for(response)
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or not data:
                    continue
                if data == "[DONE]":
                    return
                yield self._event(path, data)
        raise TargetError(f"{path}: the answer broke off", hint="Ask again.")

    def close(self) -> None:
        self._client.close()

    def _send(
        self, method: str, path: str, again: Again, *, form: _Form | None = None, **options: Any
    ) -> httpx.Response:
        import stamina

        tries = stamina.retry_context(
            on=_pause, attempts=4, timeout=self._budget, wait_initial=0.25, wait_jitter=0.5
        )
        try:
            for attempt in tries:
                with attempt:
                    if form is not None:
                        options = {"content": form.body(), "headers": form.headers}
                    return self._once(method, path, again, form=form, **options)
        except _Failed as failed:
            raise failed.error from failed.__cause__
        raise UnreachableError(f"{path}: no answer")

    def _once(
        self, method: str, path: str, again: Again, *, form: _Form | None, **options: Any
    ) -> httpx.Response:
        import httpx

        try:
            response = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            if form is not None:
                form.take_back()
            untouched = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            kind = AmbiguousError if again == "never" and not untouched else UnreachableError
            raise _Failed(self._silence(error, kind), again == "always") from error
        if not response.is_success:
            if form is not None:
                form.take_back()
            raise _Failed(self._error(response, again), self._when(response, again))
        return response

    def _json(self, path: str, response: httpx.Response, again: Again = "always") -> Any:
        try:
            return response.json()
        except ValueError as error:
            kind = AmbiguousError if again == "never" else TargetError
            raise kind(f"{path}: the answer is not JSON", status=response.status_code) from error

    def _event(self, path: str, data: str) -> dict[str, Any]:
        """One server-sent event; a service that fails in the middle of an answer says so in one."""
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise TargetError(f"{path}: an event of the answer is not a JSON object")
        if (error := event.get("error")) is not None:
            text = error.get("message") if isinstance(error, dict) else error
            raise TargetError(
                self._redact(f"{path}: the answer broke off: {text}"), hint="Ask again."
            )
        return event

    def _raise_for(self, response: httpx.Response) -> None:
        if not response.is_success:
            raise self._error(response, "always")

    def _error(self, response: httpx.Response, again: Again) -> TargetError:
        """The error of an answer; where a request may not be sent twice, 5xx says too little."""
        status = response.status_code
        message, code = _error_text(response)
        kind = _KINDS.get(status, TargetError)
        if again == "never" and (status >= 500 or status == 408):
            kind = AmbiguousError
        ids = (response.headers.get(name) for name in _REQUEST_IDS)
        error = kind(
            self._redact(message),
            status=status,
            code=self._redact(code),
            request_id=next((found for found in ids if found), ""),
        )
        if isinstance(error, AuthError):
            error.challenge = response.headers.get("www-authenticate", "")
        return error

    def _when(self, response: httpx.Response, again: Again) -> bool | float:
        """Whether to ask again, or in how many seconds, where the service says so."""
        statuses = {"always": _LATER, "untouched": _BUSY, "never": frozenset({429})}[again]
        if response.status_code not in statuses:
            return False
        if response.headers.get("x-should-retry") == "false":
            return False
        seconds = _retry_after(response.headers)
        if seconds is None:
            return True
        return seconds if seconds <= self._budget else False

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TransportError as error:
            raise self._silence(error, UnreachableError) from error

    def _silence(self, error: Exception, kind: type[TargetError]) -> TargetError:
        text = self._redact(f"{self._client.base_url}: {error or type(error).__name__}")
        return kind(text, hint="Is the service up, and the address right?")

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(secret.removeprefix("Bearer "), "***")
        return redact(text)


def redact(text: str) -> str:
    """The text without what looks like a token, key or signature."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


class _Failed(Exception):  # noqa: N818 - a signal to the retry loop, never seen outside
    """One try that failed, and whether or when there is to be another."""

    def __init__(self, error: TargetError, again: bool | float) -> None:  # noqa: FBT001 - or seconds
        super().__init__(error.message)  # what a log of the retries shows
        self.error = error
        self.again = again


def _pause(error: Exception) -> bool | float:
    return error.again if isinstance(error, _Failed) else False


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the service asks to wait, a little jitter on top: not everyone at once."""
    jitter = secrets.randbelow(250) / 1000
    try:
        if (given := headers.get("retry-after-ms")) is not None:
            return float(given) / 1000 + jitter
        given = headers.get("retry-after", "")
        return float(given) + jitter
    except ValueError:
        moment = email.utils.parsedate_tz(given or "")
    if moment is None:
        return None
    now = dt.datetime.now(dt.UTC).timestamp()
    return max(0.0, email.utils.mktime_tz(moment) - now) + jitter


class _Form:
    """multipart/form-data whose file is read while it is sent, each time anew."""

    def __init__(self, fields: Mapping[str, str], part: Slice) -> None:
        boundary = secrets.token_hex(16)
        lines = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        called = re.sub(r'[\r\n"]', "_", part.name)
        lines.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{part.field}"; '
            f'filename="{called}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        self._head = "".join(lines).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._part = part
        self._told = 0
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(self._head) + part.size + len(self._tail)),
        }

    def body(self) -> Iterator[bytes]:
        self._told = 0
        yield self._head
        left = self._part.size
        with self._part.file.open("rb", buffering=0) as stream:
            stream.seek(self._part.start)
            while left:
                chunk = stream.read(min(_CHUNK, left))
                if not chunk:
                    raise TargetError(f"{self._part.file} became shorter while it was sent")
                left -= len(chunk)
                yield chunk
                self._told += len(chunk)
                self._part.on_bytes(len(chunk))
        yield self._tail

    def take_back(self) -> None:
        """What was told as sent did not arrive."""
        told, self._told = self._told, 0
        self._part.on_bytes(-told)


def _error_text(response: httpx.Response) -> tuple[str, str]:
    """Message and code out of an OpenAI or ARM error body, or the text as it is."""
    try:
        error = response.json()["error"]
        return str(error["message"]), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or f"HTTP {response.status_code}", ""
