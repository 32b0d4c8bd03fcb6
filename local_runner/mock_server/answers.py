"""Replies as the framework's responses, heard by the journal; and connections that end as faults want it."""

from __future__ import annotations

import http
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from typing import Any

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope

from local_runner.mock_server.control.journal import MAX_KEPT
from local_runner.mock_server.wire import Call, Reply

HANG_UP = "maas.hang_up"
"""Where the protocol leaves the function that closes the connection; `now=True` drops what is unsent."""
_PIECE = 1024 * 1024


@dataclass(slots=True)
class Exchange:
    """One request on its way through: what is known of it so far."""

    call: Call
    sent: Sequence[bytes] = ()
    """An upload's content, where it is short enough to be recorded."""


def response(reply: Reply, call: Call) -> Response:
    """The reply in the framework's form."""
    headers = {**ids(call), **reply.headers}
    body = reply.body
    match body:
        case dict() | list():
            return JSONResponse(body, reply.status, headers)
        case None:
            return _empty(reply.status, headers)
        case str() | bytes():
            return Response(body, reply.status, headers, reply.media_type)
        case BufferedReader():
            stream = _file(body, reply.span)
            return StreamingResponse(stream, reply.status, headers, reply.media_type)
        case _:
            return StreamingResponse(_spoken(body), reply.status, headers, reply.media_type)


def ids(call: Call) -> dict[str, str]:
    """The numbers that every answer bears: ours, and the client's own."""
    client = call.headers.get("x-ms-client-request-id")
    number = str(uuid.uuid4())
    own = {"x-ms-request-id": number, "x-request-id": number}  # Azure's clients', and OpenAI's
    return own | {"x-ms-client-request-id": client} if client else own


def listened(made: Response, write: Callable[[Any], None]) -> Response:
    """The response, whose body is handed to `write` once: whole, or by its digest where it is long."""
    if not isinstance(made, StreamingResponse):
        write(bytes(made.body))
        return made
    inner = made.body_iterator

    async def heard() -> AsyncIterator[Any]:
        kept, size = [], 0
        try:
            async for piece in inner:
                size += len(piece)
                if size <= MAX_KEPT:
                    kept.append(piece if isinstance(piece, bytes) else str(piece).encode())
                yield piece
        finally:
            write(b"".join(kept) if size <= MAX_KEPT else {"size": size})

    made.body_iterator = heard()
    return made


def cut(made: Response, most: int, scope: Scope) -> Response:
    """The response, with the connection closed after so many bytes of its body."""
    inner = made.body_iterator if isinstance(made, StreamingResponse) else _once(bytes(made.body))

    async def broken() -> AsyncIterator[bytes]:
        left = most
        async for piece in inner:
            data = piece if isinstance(piece, bytes) else str(piece).encode()
            if data[:left]:
                yield data[:left]
            left -= len(data)
            if left <= 0:
                break
        scope[HANG_UP](now=False)
        await anyio.sleep_forever()  # until the framework hears that the connection is gone

    headers = {key: value for key, value in made.headers.items() if key != "content-type"}
    return StreamingResponse(broken(), made.status_code, headers, made.headers.get("content-type"))


async def hang_up(scope: Scope, receive: Receive) -> None:
    """Close the connection without a word."""
    scope[HANG_UP](now=True)
    while (await receive())["type"] != "http.disconnect":
        pass


def word(status: int) -> str:
    """A status as an error code: 503 is ServiceUnavailable."""
    try:
        return http.HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")
    except ValueError:
        return f"Status{status}"


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _spoken(pieces: Generator[bytes]) -> AsyncIterator[bytes]:
    """The pieces as they come.

    In a lane of their own: questions that wait for the model hold theirs until this answer has ended.
    """
    lane = anyio.CapacityLimiter(1)
    run = partial(anyio.to_thread.run_sync, limiter=lane)
    try:
        while (piece := await run(next, pieces, None)) is not None:
            yield piece
    finally:
        with anyio.CancelScope(shield=True):  # a reader that has gone must not hold the model
            await run(pieces.close)


def _empty(status: int, headers: Mapping[str, str]) -> Response:
    made = Response(None, status, dict(headers))
    if "Content-Length" in headers:  # the answer to a HEAD: the length of what a GET would send
        made.headers["Content-Length"] = headers["Content-Length"]
    return made


async def _file(file: BufferedReader, span: tuple[int, int] | None) -> AsyncIterator[bytes]:
    async with anyio.wrap_file(file) as stream:
        left: Any = None
        if span is not None:
            await stream.seek(span[0])
            left = span[1] - span[0] + 1
        while left is None or left > 0:
            part = await stream.read(_PIECE if left is None else min(_PIECE, left))
            if not part:
                return
            left = None if left is None else left - len(part)
            yield part
