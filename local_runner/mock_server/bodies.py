"""Request bodies, with an end to their length and to the patience with those who send them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
from starlette.requests import Request

from local_runner.mock_server.errors import ServiceError

_SLOWEST = 1024
"""Bytes a second that are too few to go on waiting for."""


@dataclass(frozen=True, slots=True)
class Bodies:
    """Reads bodies."""

    patience: float = 30.0
    """Seconds to wait for the next piece of one."""

    async def whole(self, request: Request, limit: int) -> bytes:
        """The body.

        Raises:
            ServiceError: it is longer than the limit, or comes too slowly.
        """
        length = request.headers.get("content-length", "")
        if not length and "transfer-encoding" not in request.headers:
            return b""
        if length.isdigit() and int(length) > limit:
            raise _too_long(limit)
        return b"".join([part async for part in self.pieces(request, limit)])

    async def drain(self, request: Request, limit: int) -> None:
        """Read the body and keep nothing."""
        async for _ in self.pieces(request, limit):
            pass

    async def pieces(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            ServiceError: it is longer than the limit, or comes too slowly.
        """
        size, began = 0, time.monotonic()
        stream = request.stream()
        while True:
            try:
                with anyio.fail_after(self.patience):
                    part = await anext(stream, None)
            except TimeoutError as error:
                raise _too_slow() from error
            if part is None:
                return
            size += len(part)
            if size > limit:
                raise _too_long(limit)
            if (took := time.monotonic() - began) > self.patience and size < took * _SLOWEST:
                raise _too_slow()
            yield part


def _too_long(limit: int) -> ServiceError:
    return ServiceError(413, "RequestBodyTooLarge", f"At most {limit:,} bytes are taken here.")


def _too_slow() -> ServiceError:
    return ServiceError(408, "RequestTimeout", "The request's body comes too slowly.")
