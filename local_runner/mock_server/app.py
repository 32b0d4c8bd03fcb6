"""The doors as one ASGI application: finds the door, looks at the caller, reads the body, answers.

Doors are plain functions from a call to a reply; the framework is known here only.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import AsyncIterator, Generator, Mapping
from dataclasses import replace
from functools import partial
from io import BufferedReader
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Mount

from local_runner.mock_server import (
    chat_door,
    control_door,
    endpoint_door,
    job_door,
    model_door,
    workspace_door,
)
from local_runner.mock_server.blob_door import MAX_BLOB, PREFIX, BlobDoor
from local_runner.mock_server.blobs import Upload
from local_runner.mock_server.credentials import same
from local_runner.mock_server.errors import (
    ServiceError,
    arm_body,
    blob_body,
    unauthorized,
)
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Router
from local_runner.mock_server.worker import Worker

MAX_BODY = 4 * 1024 * 1024
"""Bytes of a request that is not an upload."""
_METHODS = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"]
_PIECE = 1024 * 1024
_MOST_QUESTIONS = 64
"""Questions that wait for an answer at once; more wait at the door."""
_CONTROL = re.compile("[\x00-\x1f\x7f\ufffd-\uffff]")
"""What no name has: it would break headers and lists."""

_log = logging.getLogger(__name__)


def make_router(twin: Twin, worker: Worker) -> Router:
    """Every route but the blobs'."""
    return Router(
        [
            *workspace_door.routes(twin),
            *job_door.routes(twin, worker),
            *model_door.routes(twin),
            *endpoint_door.routes(twin),
            *chat_door.routes(twin),
            *control_door.routes(twin, worker),
        ]
    )


def make_app(twin: Twin, worker: Worker) -> Starlette:
    """The service as an application."""
    front = _Front(twin, make_router(twin, worker))
    return Starlette(routes=[Mount("/{path:path}", front.handle, methods=_METHODS)])


class _Front:
    def __init__(self, twin: Twin, router: Router) -> None:
        self._twin = twin
        self._router = router
        self._blobs = BlobDoor(twin)
        # Questions wait for the model: however many wait, the other doors stay open.
        self._questions = anyio.CapacityLimiter(_MOST_QUESTIONS)

    async def handle(self, request: Request) -> Response:
        """Answer one request; whatever goes wrong, the server lives on."""
        call = _call(request)
        is_blob = PREFIX.match(call.path) is not None
        try:
            _check_path(call)
            answer = self._blob(request, call) if is_blob else self._door(request, call)
            return _response(await answer, call)
        except ServiceError as error:
            return self._refusal(error, blob=is_blob)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except OSError as error:
            _log.exception("%s %s", call.method, call.path)
            full = ServiceError(507, "InsufficientStorage", f"The mock's disk: {error.strerror}")
            return self._refusal(full, blob=is_blob)
        except Exception:  # whatever a door trips over, the server lives on
            _log.exception("%s %s", call.method, call.path)
            words = "The mock failed; its log says why."
            return self._refusal(ServiceError(500, "InternalServerError", words), blob=is_blob)

    async def _door(self, request: Request, call: Call) -> Reply:
        method = "GET" if call.method == "HEAD" else call.method
        route, params = self._router.find(method, call.path)
        self._admit(route.guard, call)
        body = await _body(request, MAX_BODY)
        ready = replace(call, params=params, body=body)
        lane = self._questions if route.slow else None
        return await anyio.to_thread.run_sync(route.handler, ready, limiter=lane)

    async def _blob(self, request: Request, call: Call) -> Reply:
        self._blobs.admit(call)
        if not self._blobs.takes_content(call):
            body = await _body(request, MAX_BODY)
            return await run_in_threadpool(self._blobs.answer, replace(call, body=body), None)
        upload = self._twin.blobs.begin()
        try:
            await _receive(request, upload)
            return await run_in_threadpool(self._blobs.answer, call, upload)
        except BaseException:
            upload.abandon()
            raise

    def _admit(self, guard: str, call: Call) -> None:
        given = call.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if guard == "control" and not same(given, self._twin.secrets.control):
            raise ServiceError(
                401, "Unauthorized", "The control door needs the home's control secret."
            )
        if guard == "bearer":
            fault = (
                self._twin.secrets.token_fault(given) if given else "The access token is missing."
            )
            if fault:
                raise unauthorized(fault, f"{self._twin.site.url}/common")

    def _refusal(self, error: ServiceError, *, blob: bool) -> Response:
        headers = {"x-ms-request-id": str(uuid.uuid4()), **error.headers}
        if blob:
            return Response(blob_body(error), error.status, headers, "application/xml")
        headers["x-ms-response-type"] = "error"
        return JSONResponse(arm_body(error, self._twin.site.region), error.status, headers)


def _call(request: Request) -> Call:
    path = re.sub(r"/{2,}", "/", request.scope["path"])  # already unquoted, once
    headers = {key.lower(): value for key, value in request.headers.items()}
    return Call(request.method, path, {}, dict(request.query_params), headers)


def _check_path(call: Call) -> None:
    if _CONTROL.search(call.path):
        raise ServiceError(400, "InvalidUri", "The path holds control characters.")


async def _body(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise ServiceError(
                413, "RequestEntityTooLarge", f"At most {limit:,} bytes are taken here."
            )
        parts.append(part)
    return b"".join(parts)


async def _receive(request: Request, upload: Upload) -> None:
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BLOB:
            raise ServiceError(
                413, "RequestBodyTooLarge", f"At most {MAX_BLOB:,} bytes in one upload."
            )
        if len(part) > 64 * 1024:
            await anyio.to_thread.run_sync(upload.write, part)
        elif part:
            upload.write(part)


def _response(reply: Reply, call: Call) -> Response:
    headers = {"x-ms-request-id": str(uuid.uuid4()), **reply.headers}
    if client := call.headers.get("x-ms-client-request-id"):
        headers["x-ms-client-request-id"] = client
    body = reply.body
    match body:
        case BufferedReader():
            stream = _file(body, reply.span)
            return StreamingResponse(stream, reply.status, headers, reply.media_type)
        case dict() | list():
            return JSONResponse(body, reply.status, headers)
        case None:
            return _empty(reply.status, headers)
        case str() | bytes():
            return Response(body, reply.status, headers, reply.media_type)
        case _:
            return StreamingResponse(_spoken(body), reply.status, headers, reply.media_type)


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
    response = Response(None, status, dict(headers))
    if "Content-Length" in headers:  # the answer to a HEAD: the length of what a GET would send
        response.headers["Content-Length"] = headers["Content-Length"]
    return response


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
