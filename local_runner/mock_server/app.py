"""The doors as one ASGI application: finds the door, looks at the caller, reads the body, answers.

Doors are plain functions from a call to a reply; the framework is known here and in `answers.py` only.
"""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
import time
from dataclasses import replace

import anyio
import anyio.to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from local_runner.mock_server import answers
from local_runner.mock_server.bodies import Bodies
from local_runner.mock_server.control.controls import Fault
from local_runner.mock_server.control.journal import Journal
from local_runner.mock_server.credentials import same
from local_runner.mock_server.errors import (
    REPLACED,
    ServiceError,
    arm_body,
    blob_body,
    openai_body,
    unauthorized,
)
from local_runner.mock_server.forms import FORM_ROOM, Form, batches
from local_runner.mock_server.names import Names
from local_runner.mock_server.openai import access
from local_runner.mock_server.storage.blob_door import MAX_BLOB, PREFIX, BlobDoor
from local_runner.mock_server.storage.signatures import refusal
from local_runner.mock_server.storage.upload import receive
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Handler, Reply, Route, Router

MAX_BODY = 4 * 1024 * 1024
"""Bytes of a request that is not an upload."""
_KEPT_UPLOAD = 16 * 1024
"""Bytes of an upload that the journal keeps; what is longer is in the store."""
CONTROL_PREFIX = "/__mock__/"
_METHODS = frozenset(("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"))
_MOST_QUESTIONS = 64
"""Questions that wait for an answer at once; more wait at the door."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffd-\uffff]")
"""What no name has: it would break headers and lists."""

_log = logging.getLogger(__name__)


class App:
    """The service as an application.

    Args:
        twin: the service under the local address.
        router: its doors, but for the blobs'.
        public: the same service under the public cloud's names, and its doors.
        journal: records every call.
        bodies: reads what is sent.
    """

    def __init__(
        self,
        twin: Twin,
        router: Router,
        *,
        public: tuple[Twin, Router],
        journal: Journal,
        bodies: Bodies | None = None,
    ) -> None:
        self._twin = twin
        self._router = router
        self._public = public
        self._names = Names(twin.site.region)
        self._blobs = BlobDoor(twin)
        self._bodies = bodies or Bodies()
        self._journal = journal
        # Questions wait for the model: however many wait, the other doors stay open.
        self._questions = anyio.CapacityLimiter(_MOST_QUESTIONS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever goes wrong, the server lives on."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        request = Request(scope, receive)
        exchange = answers.Exchange(_call(request))
        fault, response = await self._fault(exchange.call)
        if response is None:
            response = await self._respond(request, exchange, fault)
        if response is not None:
            response = self._recorded(exchange, response, began, fault)
            if fault is not None and fault.kind == "cut":
                response = answers.cut(response, fault.bytes, scope)
            await response(scope, receive, send)
            return
        self._journal.write(
            exchange.call, 0, {}, None, seconds=time.perf_counter() - began, fault=_kind(fault)
        )
        await answers.hang_up(scope, receive)

    async def _fault(self, call: Call) -> tuple[Fault | None, Response | None]:
        """What goes wrong with this request on purpose, after what it has to wait; or why that is unknown."""
        controls, method, path = self._twin.controls, call.method, call.path
        if path.startswith(CONTROL_PREFIX):
            return None, None
        fault = None
        if controls.covers(method, path):
            try:
                fault = await anyio.to_thread.run_sync(controls.fault, method, path)
            except Exception as error:  # a full disk
                _log.exception("what is to go wrong cannot be counted")
                return None, self._refusal(_own_fault(error), call)
        if delay := controls.delay(method, path):
            await anyio.sleep(delay)
        return fault, None

    def _recorded(
        self, exchange: answers.Exchange, response: Response, began: float, fault: Fault | None
    ) -> Response:
        def write(body: bytes | str | dict[str, object] | None) -> None:
            self._journal.write(
                exchange.call,
                response.status_code,
                response.headers,
                body,
                sent=exchange.sent,
                seconds=time.perf_counter() - began,
                fault=_kind(fault),
            )

        return answers.listened(response, write)

    async def _respond(
        self, request: Request, exchange: answers.Exchange, fault: Fault | None
    ) -> Response | None:
        """What the client gets, a fault and all; None for no answer."""
        if fault is None:
            return await self._answer(request, exchange)
        match fault.kind:
            case "lost-request":
                return None
            case "status":
                await self._bodies.drain(request, MAX_BLOB)
                code = fault.code or answers.word(fault.status)
                error = ServiceError(fault.status, code, fault.message, headers=fault.headers)
                return self._refusal(error, exchange.call)
            case "slow":
                await anyio.sleep(fault.seconds)
                return await self._answer(request, exchange)
            case _:
                response = await self._answer(request, exchange)
                return None if fault.kind == "lost-reply" else response

    async def _answer(self, request: Request, exchange: answers.Exchange) -> Response:
        call = exchange.call
        try:
            _check(call)
            call = exchange.call = self._names.local(call)
            answer = self._blob if PREFIX.match(call.path) else self._door
            return answers.response(await answer(request, exchange), call)
        except ServiceError as error:
            return self._refusal(error, call)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except Exception as error:  # whatever a door trips over, the server lives on
            _log.exception("%s %s", call.method, call.path)
            return self._refusal(_own_fault(error), call)

    async def _door(self, request: Request, exchange: answers.Exchange) -> Reply:
        call = exchange.call
        twin, router = self._public if call.public else (self._twin, self._router)
        method = "GET" if call.method == "HEAD" else call.method
        route, params = router.find(method, call.path)
        _admit(twin, route.guard, call)
        if route.upload:
            return await self._form(request, exchange, route, params)
        body = await self._bodies.whole(request, MAX_BODY)
        ready = exchange.call = replace(call, params=params, body=body)
        if route.quick:
            return route.handler(ready)
        if route.slow:
            return await self._slow(route.handler, ready, request.receive)
        return await anyio.to_thread.run_sync(route.handler, ready)

    async def _slow(self, handler: Handler, call: Call, receive: Receive) -> Reply:
        """Answer, and let the handler know where the client hangs up meanwhile."""

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            call.gone.set()

        failed: Exception | None = None
        async with anyio.create_task_group() as group:  # errors leave it in a group of their own
            group.start_soon(listen)
            try:
                reply = await anyio.to_thread.run_sync(handler, call, limiter=self._questions)
            except Exception as error:
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return reply

    async def _form(
        self, request: Request, exchange: answers.Exchange, route: Route, params: dict[str, str]
    ) -> Reply:
        """A file on its way to the disk, never held whole."""
        kind = exchange.call.headers.get("content-type", "")
        form = Form(kind, self._twin.blobs.begin, most=route.upload)
        try:
            pieces = self._bodies.pieces(request, route.upload + FORM_ROOM)
            size = 0
            async for batch in batches(pieces):
                size += len(batch)
                exchange.sent = [batch] if size <= _KEPT_UPLOAD else ()
                await run_in_threadpool(form.feed, batch)
            form.end()
            ready = replace(exchange.call, params=params, form=form)
            return await anyio.to_thread.run_sync(route.handler, ready)
        finally:
            await run_in_threadpool(form.abandon)  # harmless where the content was kept

    async def _blob(self, request: Request, exchange: answers.Exchange) -> Reply:
        call = exchange.call
        self._blobs.admit(call)
        if not self._blobs.takes_content(call):
            exchange.call = replace(call, body=await self._bodies.whole(request, MAX_BODY))
            return await run_in_threadpool(self._blobs.answer, exchange.call, None)
        upload = self._blobs.begin(call)
        try:
            pieces = self._bodies.pieces(request, MAX_BLOB)
            exchange.sent = await receive(pieces, upload, keep=_KEPT_UPLOAD)
            return await run_in_threadpool(self._blobs.answer, call, upload)
        except FileNotFoundError as error:
            upload.abandon()
            raise refusal(503, "ServerBusy", REPLACED) from error
        except BaseException:
            upload.abandon()
            raise

    def _refusal(self, error: ServiceError, call: Call) -> Response:
        headers = {**answers.ids(call), **error.headers}
        if error.status in (408, 413):
            headers["Connection"] = "close"  # what is left of the request is not read
        if access.PREFIX.match(call.path):
            return JSONResponse(openai_body(error), error.status, headers)
        if PREFIX.match(call.path):
            return Response(blob_body(error), error.status, headers, "application/xml")
        headers["x-ms-response-type"] = "error"
        return JSONResponse(arm_body(error, self._twin.site.region), error.status, headers)


def _admit(twin: Twin, guard: str, call: Call) -> None:
    given = call.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if guard == "control" and not same(given, twin.secrets.control):
        raise ServiceError(401, "Unauthorized", "The control door needs the home's control secret.")
    if guard == "api-key":
        access.admit(twin.secrets, call)
    if guard == "bearer":
        fault = twin.secrets.token_fault(given) if given else "The access token is missing."
        if fault:
            raise unauthorized(fault, f"{twin.site.url}/common")


def _call(request: Request) -> Call:
    path = re.sub(r"/{2,}", "/", request.scope["path"])  # already unquoted, once
    headers = {key.lower(): value for key, value in request.headers.items()}
    query = request.scope["query_string"].decode("latin-1")
    return Call(
        request.method,
        path,
        {},
        dict(request.query_params),
        headers,
        target=f"{request.scope['raw_path'].decode('latin-1')}?{query}",
        client=request.client.host if request.client else "",
    )


def _check(call: Call) -> None:
    if call.method not in _METHODS:
        raise ServiceError(405, "MethodNotAllowed", f"{call.method[:20]} is not served.")
    if _CONTROL.search(call.path):
        raise ServiceError(400, "InvalidUri", "The path holds control characters.")


def _own_fault(error: Exception) -> ServiceError:
    full = isinstance(error, OSError) and error.errno in _FULL
    if full or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return ServiceError(507, "InsufficientStorage", f"The mock's disk is full: {error}")
    return ServiceError(500, "InternalServerError", "The mock failed; its log says why.")


def _kind(fault: Fault | None) -> str:
    return fault.kind if fault else ""
