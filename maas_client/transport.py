"""HTTP with auth, retries and redaction. The only file that knows httpx."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from maas_client.errors import AuthError, NotFoundError, TargetError, UnreachableError

if TYPE_CHECKING:
    import httpx

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_KINDS: Mapping[int, type[TargetError]] = {401: AuthError, 403: AuthError, 404: NotFoundError}


class Transport:
    """A keep-alive connection to one service.

    Args:
        base_url: without a trailing slash.
        headers: sent with each request; secrets among them never reach an error message.
        ca: PEM file of the authority that signed the service's certificate; None trusts the
            system's. httpx ignores REQUESTS_CA_BUNDLE, so the file is given as an SSLContext.
        timeout: seconds that the service may be silent.
        transport: a stand-in for the network, for tests.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        ca: str | None = None,
        timeout: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        import httpx  # a sixth of a second that `maas --help` need not pay

        context: ssl.SSLContext | bool = True
        if ca is not None:
            context = ssl.create_default_context(cafile=ca)
        self._secrets = tuple(value for value in (headers or {}).values() if len(value) >= 8)
        self._client = httpx.Client(
            base_url=base_url,
            headers=dict(headers or {}),
            verify=context,
            timeout=timeout,
            transport=transport,
        )

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST JSON, and return the JSON of the answer. Retried only where nothing was done yet.

        Raises:
            TargetError: by the answer's status, with its message and request id.
        """
        import stamina

        for attempt in stamina.retry_context(on=_Retry, attempts=4, timeout=60.0):
            with attempt, self._errors():
                response = self._client.post(path, json=dict(body))
                if response.status_code in (429, 503) and attempt.num < 4:
                    raise _Retry
                self._raise_for(response)
                try:
                    return response.json()
                except ValueError as error:
                    raise TargetError(
                        f"{path}: the answer is not JSON", status=response.status_code
                    ) from error
        raise UnreachableError(f"{path}: no answer")

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """POST JSON, and yield the JSON of each server-sent event until `[DONE]`."""
        with self._errors(), self._client.stream("POST", path, json=dict(body)) as response:
            if response.is_error:
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
        if not response.is_error:
            return
        message, code = _error_text(response)
        kind = _KINDS.get(response.status_code, TargetError)
        raise kind(
            self._redact(message),
            status=response.status_code,
            code=code,
            request_id=response.headers.get("x-ms-request-id")
            or response.headers.get("x-request-id", ""),
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TransportError as error:
            raise UnreachableError(
                self._redact(f"{self._client.base_url}: {error or type(error).__name__}"),
                hint="Is the service up, and the address right?",
            ) from error

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(secret.removeprefix("Bearer "), "***")
        return text


class _Retry(Exception):  # noqa: N818 - a signal to the retry loop, never seen outside
    pass


def _error_text(response: httpx.Response) -> tuple[str, str]:
    """Message and code out of an OpenAI or ARM error body, or the text as it is."""
    try:
        error = response.json()["error"]
        return str(error["message"]), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or f"HTTP {response.status_code}", ""
