"""The HTTP protocol with patience and limits: a client that sends too much, or too slowly, is sent away."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from local_runner.mock_server.answers import HANG_UP

MAX_HEAD = 64 * 1024
"""Bytes of a request's line and headers."""
MAX_HEADERS = 200


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for ever and takes headers without end."""

    patience = 20.0
    """Seconds that a client may take to send a request's line and headers."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head = 0
        self._reading_head = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows it, too
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._reading_head:
            self._head += len(data)
            if self._head > MAX_HEAD and not self._ends(data):
                self._send_away(431, "Request Header Fields Too Large")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading_head = True
        self._wait()
        self.scope[HANG_UP] = self._hang_up  # type: ignore[literal-required]  # ours

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._reading_head, self._head = False, 0
        whole = self.app
        if len(self.headers) > MAX_HEADERS:
            self.app = _too_many
        super().on_headers_complete()
        self.app = whole

    def _ends(self, data: bytes) -> bool:
        """Whether the headers end in these bytes, and what is too long is the body."""
        return b"\r\n\r\n" in data[:MAX_HEAD]

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.patience, self._send_away, 408, "Request Timeout")

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_away(self, status: int, words: str) -> None:
        if self.transport.is_closing():
            return
        head = f"HTTP/1.1 {status} {words}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        self.transport.write(head.encode())
        self.transport.close()

    def _hang_up(self, *, now: bool) -> None:
        if now:
            self.transport.abort()
        else:
            self.transport.close()


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=431, headers={"Connection": "close"})(scope, receive, send)
