"""A CONNECT proxy for the public cloud's names that are the twin's, and for no other host.

A program that knows nothing of the mock is told of it by `HTTPS_PROXY` alone: it talks TLS with
`management.azure.com`, and the twin answers with a certificate for that name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local_runner.mock_server.credentials import write_secret
from local_runner.mock_server.names import Names

_HEAD = 16 * 1024
"""Bytes of a request's line and headers."""
_PATIENCE = 20.0
"""Seconds to send them."""
_PIECE = 64 * 1024


class Proxy:
    """Sends tunnels to the twin.

    Args:
        names: which hosts are the twin's.
        twin: says where the twin is now, host and port; None while it is not running.
    """

    def __init__(self, names: Names, twin: Callable[[], tuple[str, int] | None]) -> None:
        self._names = names
        self._twin = twin

    async def serve(self, host: str, port: int, ready: Callable[[int], None]) -> None:
        """Serve until SIGTERM or SIGINT; `ready` is told the port."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        server = await asyncio.start_server(self._tunnel, host, port, limit=_HEAD)
        ready(server.sockets[0].getsockname()[1])
        await stop.wait()
        server.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            await self._go(head, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that went away, or never said what it wants
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _go(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, target = head.split(b" ", 2)[:2] if head.count(b" ") > 1 else (b"", b"")
        host, _, port = target.decode("latin-1").rpartition(":")
        if method != b"CONNECT" or port != "443" or not self._names.owns(host):
            words = (
                f"{target.decode('latin-1')[:200]} is not the mock's: this proxy goes nowhere else."
            )
            await _refuse(writer, "403 Forbidden", words)
            return
        try:
            there, back = await self._open()
        except OSError:  # it may have been killed: then it has not said that it went
            await _refuse(writer, "502 Bad Gateway", "The mock does not run: maas mock serve")
            return
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            # Whoever ends first ends both: a half-open tunnel is of no use to HTTP.
            ways = {
                asyncio.create_task(_copy(reader, back)),
                asyncio.create_task(_copy(there, writer)),
            }
            _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in left:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            back.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = self._twin()
        if place is None:
            raise ConnectionRefusedError
        return await asyncio.open_connection(*place)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(_PIECE):
        target.write(data)
        await target.drain()


async def _refuse(writer: asyncio.StreamWriter, status: str, words: str) -> None:
    body = f"{words}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def run(home: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve for the mock of a home; `proxy.json` says where, for as long as it serves."""
    file = home / "proxy.json"

    def state() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((home / "server.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def twin() -> tuple[str, int] | None:
        found = state()
        if found is None:
            return None
        name, _, number = found["url"].removeprefix("https://").rpartition(":")
        return name, int(number)

    def ready(chosen: int) -> None:
        url = f"http://{host}:{chosen}"
        write_secret(file, json.dumps({"pid": os.getpid(), "url": url}).encode())
        say(f"the proxy to the mock is at {url}")

    region = (state() or {}).get("region", "eastus2")
    try:
        asyncio.run(Proxy(Names(region), twin).serve(host, port, ready))
    finally:
        file.unlink(missing_ok=True)
