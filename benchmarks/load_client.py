"""A client that asks for one address again and again, over raw sockets; prints what it saw as JSON.

python benchmarks/load_client.py URL --header 'Authorization: …' --clients 16 --seconds 4 [--every 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Client:
    """One connection, kept as long as the server keeps it."""

    url: str
    headers: list[str]
    context: ssl.SSLContext | None
    times: list[float] = field(default_factory=list)
    reconnects: int = -1
    _line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        """One request, and how long it took."""
        parts = urlsplit(self.url)
        began = time.perf_counter()
        if self._line is None:
            self.reconnects += 1
            self._line = await asyncio.open_connection(parts.hostname, parts.port, ssl=self.context)
        reader, writer = self._line
        lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: keep-alive"]
        writer.write("\r\n".join([*lines, *self.headers, "", ""]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert " 200 " in head.partition("\r\n")[0], head  # noqa: S101 - a wrong answer is no measurement
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        await reader.readexactly(length)
        self.times.append(time.perf_counter() - began)
        if head.startswith("http/1.0") or "connection: close" in head:
            writer.close()
            self._line = None

    async def run(self, until: float, every: float) -> None:
        """Ask until then; `every` so many seconds, or at once again."""
        if every:
            await asyncio.sleep(random.uniform(0, every))  # noqa: S311 - so that they do not march in step
        while time.monotonic() < until:
            next_time = time.monotonic() + every
            await self.ask()
            if every:
                await asyncio.sleep(max(0.0, next_time - time.monotonic()))


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """All clients at once."""
    context = ssl.create_default_context(cafile=str(options.ca)) if options.ca else None
    clients = [Client(options.url, options.header, context) for _ in range(options.clients)]
    for client in clients:
        await client.ask()  # the handshake is not what is measured
        client.times.clear()
    until = time.monotonic() + options.seconds
    await asyncio.gather(*(client.run(until, options.every) for client in clients))
    times = sorted(moment for client in clients for moment in client.times)
    return {
        "requests": len(times),
        "per_second": len(times) / options.seconds,
        "p50_ms": 1000 * statistics.median(times),
        "p99_ms": 1000 * times[int(len(times) * 0.99)],
        "max_ms": 1000 * times[-1],
        "reconnects": sum(client.reconnects for client in clients),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--every", type=float, default=0.0)
    parser.add_argument("--ca", type=Path)
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
