"""Calls and replies as the doors see them, and the table that finds the door. Knows no framework."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any, Literal

from local_runner.mock_server.errors import ServiceError, user_error
from local_runner.mock_server.forms import Form


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read whole."""

    method: str
    path: str
    params: Mapping[str, str]
    """What the route's placeholders matched."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""
    asked: str = ""
    """The path as it came, where a public host's meaning has been added to it."""
    public: bool = False
    """Whether it came under one of the public cloud's names."""
    target: str = ""
    """What was asked for, as it was sent: still quoted, with the query."""
    client: str = ""
    """The address it came from."""
    gone: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)
    """Set when whoever asked a slow route has hung up: nobody waits for the answer any more."""
    form: Form | None = None
    """What a multipart body holds, on a route that takes one."""

    def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            ServiceError: it is none.
        """
        try:
            data = json.loads(self.body or b"{}")
            # What cannot be written again (half a character, NaN, infinity) would make every later
            # answer that shows it fail.
            json.dumps(data, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise user_error(
                f"The request body is not JSON: {error}", inner="InvalidRequestBody"
            ) from error
        if not isinstance(data, dict):
            raise user_error("The request body must be a JSON object.", inner="InvalidRequestBody")
        return data

    def properties(self) -> dict[str, Any]:
        """The `properties` of an ARM resource."""
        found = self.json().get("properties")
        if not isinstance(found, dict):
            raise user_error("The request body has no properties.", inner="InvalidRequestBody")
        return found


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. A dict or list is JSON, a generator is streamed, an open file is sent and closed."""

    status: int = 200
    body: (
        dict[str, Any]
        | list[Any]
        | str
        | bytes
        | BufferedReader
        | Generator[bytes, None, None]
        | None
    ) = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"
    span: tuple[int, int] | None = None
    """First and last byte of a file to send, inclusive."""


Handler = Callable[[Call], Reply]
Source = Literal["recorded", "sdk", "documented", "ours"]
"""How we know a route: seen in recordings of the service; sent and read by the vendor's SDK; written in
the vendor's documentation; or made by us, where nothing public shows it."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes. `{name}` matches one segment of the path."""

    method: str
    pattern: str
    handler: Handler
    guard: str = "bearer"
    """Who may come in: `bearer`, `api-key`, `control`, or `open` where the door itself looks."""
    slow: bool = False
    """Whether it may have to wait for the model."""
    quick: bool = False
    """Whether it only reads a little, so that a thread of its own would cost more than it saves."""
    source: Source = "sdk"
    call: str = ""
    """Who sends it: the SDK's verb, as `jobs.get`."""
    body: Mapping[str, Any] | None = None
    """JSON schema of the request's body; None where it has none."""
    upload: int = 0
    """Bytes of the file in its multipart body; 0 where the body is JSON."""

    def regex(self) -> re.Pattern[str]:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.pattern)
        return re.compile(f"{pattern}/?", re.IGNORECASE)


def whole_number(text: str | None) -> int | None:
    """The number of `$top` and its like; None where it is none."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,15}", text) else None


def part(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object inside a body; an empty one where there is none.

    Raises:
        ServiceError: something else is in its place.
    """
    found = given.get(key)
    if found is not None and not isinstance(found, dict):
        raise user_error(f"{key} must be an object.", inner="InvalidRequestBody")
    return found or {}


def check_asset(given: Mapping[str, Any]) -> None:
    """Refuse what no asset has: a field that every kind of asset has, with another type.

    Raises:
        ServiceError: with the field's name.
    """
    for key, kind in _ASSET.items():
        if given.get(key) is not None and not isinstance(given[key], kind):
            raise user_error(f"{key} must be a {kind.__name__}.", inner="InvalidRequestBody")


_ASSET: Mapping[str, type] = {
    "isArchived": bool,
    "isAnonymous": bool,
    "description": str,
    "tags": dict,
    "properties": dict,
}


def archived_wanted(query: Mapping[str, str]) -> tuple[bool, ...]:
    """Whether a list shows what is archived, as `listViewType` asks: not, only, or both."""
    # azure-ai-ml 1.35 asks a registry for `ListViewType.ACTIVE_ONLY`: the name of its own constant.
    view = query.get("listViewType", "ActiveOnly").rpartition(".")[2].replace("_", "").lower()
    return {"activeonly": (False,), "archivedonly": (True,)}.get(view, (False, True))


class Router:
    """Routes by path, not by api-version: an unknown version is never refused."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        # By how many parts a path has: few patterns are left to try.
        self._tables: dict[int, list[tuple[Route, re.Pattern[str]]]] = {}
        for route in routes:
            table = self._tables.setdefault(route.pattern.count("/"), [])
            table.append((route, route.regex()))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route and its parameters.

        Raises:
            ServiceError: no route has that path, or not with that method.
        """
        clean = re.sub(r"/{2,}", "/", path)
        table = self._tables.get(clean.rstrip("/").count("/"), ())
        methods = []
        for route, regex in table:
            if (match := regex.fullmatch(clean)) is None:
                continue
            if route.method == method:
                return route, match.groupdict()
            methods.append(route.method)
        if methods:
            raise ServiceError(
                405, "MethodNotAllowed", f"{clean} takes {', '.join(methods)}, not {method}."
            )
        raise ServiceError(
            404,
            "NotFound",
            f"The mock has no route {method} {clean}. `maas mock describe` lists them.",
        )
