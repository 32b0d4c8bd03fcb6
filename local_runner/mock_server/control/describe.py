"""The doors described for readers and for tools: COVERAGE.md and OpenAPI, both made of the routes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from local_runner.mock_server.control.differences import DIFFERENCES
from local_runner.mock_server.storage.blob_routes import ACCOUNT_PATH, OPERATIONS
from local_runner.mock_server.twin import WORKSPACE, Site
from local_runner.mock_server.wire import Call, Reply, Route

_SHORT = (
    (WORKSPACE, "{W}"),
    ("/subscriptions/{sub}/providers/Microsoft.MachineLearningServices", "{P}"),
    (
        "/subscriptions/{sub}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices",
        "{G}",
    ),
)
_SOURCES = {
    "recorded": "seen in public recordings of the service",
    "sdk": "what the vendor's SDK sends and reads",
    "documented": "written in the vendor's documentation",
    "ours": "nothing public shows it, or only the mock has it",
}
_GUARDS = {
    "bearer": "a token",
    "api-key": "a key or token",
    "control": "the control secret",
    "open": "the door's own",
}
_HEAD = """# What the mock covers

Made of the routes by `maas mock describe`; a test compares it with them. `{W}` is
`/subscriptions/{sub}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/{ws}`,
`{G}` and `{P}` are its beginning with and without the resource group. An api-version is never refused.
"""


def routes(known: Sequence[Route], site: Site) -> list[Route]:
    """The route that describes the others."""

    def describe(_: Call) -> Reply:
        """All this as OpenAPI."""
        return Reply(body=openapi(known, site))

    return [Route("GET", "/__mock__/openapi.json", describe, "control", source="ours")]


def coverage(routes: Sequence[Route]) -> str:
    """COVERAGE.md: each route with its source, and every known difference from the service."""
    sources = "\n".join(f"- **{word}**: {meaning}" for word, meaning in _SOURCES.items())
    parts = [_HEAD, f"Sources:\n\n{sources}\n"]
    rooms: dict[str, list[Route]] = defaultdict(list)
    for route in routes:
        rooms[_room(route)].append(route)
    for room, found in rooms.items():
        parts.append(f"## {room}\n\n{_table(found)}")
    parts += [f"## Storage, under `{ACCOUNT_PATH}` or the account's public host\n\n{_blobs()}",
              "## Known differences from the service\n"]  # fmt: skip
    for place, words in DIFFERENCES.items():
        parts.append(f"### {place}\n\n" + "\n".join(f"- {line}" for line in words) + "\n")
    return "\n".join(parts)


def openapi(routes: Sequence[Route], site: Site) -> dict[str, Any]:
    """The doors as an OpenAPI 3.1 document; blobs, which have rules of their own, are not in it."""
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        paths[route.pattern][route.method.lower()] = _operation(route, site)
    return {
        "openapi": "3.1.0",
        "info": {"title": "The offline twin of Azure ML's fine-tuning", "version": "1"},
        "servers": [{"url": site.url}],
        "paths": dict(paths),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "control": {"type": "http", "scheme": "bearer"},
                "api-key": {"type": "http", "scheme": "bearer"},
            }
        },
    }


def _operation(route: Route, site: Site) -> dict[str, Any]:
    known = {
        "sub": site.subscription,
        "group": site.group,
        "ws": site.workspace,
        "region": site.region,
    }
    parameters: list[dict[str, Any]] = []
    for name in re.findall(r"\{(\w+)\}", route.pattern):
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if name in known:
            schema = {"type": "string", "enum": [known[name]]}
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    if route.guard == "bearer":
        version = {"type": "string", "examples": ["2024-10-01-preview"]}
        parameters.append({"name": "api-version", "in": "query", "schema": version})
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method}{route.pattern}").strip("_").lower(),
        "summary": (route.handler.__doc__ or route.call or route.pattern).strip().splitlines()[0],
        "parameters": parameters,
        "responses": {"default": {"description": "an answer, or a refusal in the service's form"}},
    }
    if route.guard != "open":
        made["security"] = [{route.guard: []}]
    if route.body is not None:
        kind = "multipart/form-data" if route.upload else "application/json"
        if "oauth2" in route.pattern:
            kind = "application/x-www-form-urlencoded"
        made["requestBody"] = {"required": True, "content": {kind: {"schema": route.body}}}
    return made


def _room(route: Route) -> str:
    """The door as its module says it."""
    module = getattr(route.handler, "__module__", "").rpartition(".")[2]
    words = module.removesuffix("_door").replace("_", " ")
    return (
        "Control, ours alone" if words in ("control", "describe") else f"{words.capitalize()} door"
    )


def _table(routes: Iterable[Route]) -> str:
    lines = ["| method | path | sent by | opens with | source |", "|---|---|---|---|---|"]
    for route in routes:
        path = route.pattern
        for long, short in _SHORT:
            path = path.replace(long, short)
        call = f"`{route.call}`" if route.call else ""
        lines.append(
            f"| {route.method} | `{path}` | {call} | {_GUARDS[route.guard]} | {route.source} |"
        )
    return "\n".join(lines) + "\n"


def _blobs() -> str:
    lines = ["| method | path | query | sent by | source |", "|---|---|---|---|---|"]
    for one in OPERATIONS:
        query = f"`{one.query}`" if one.query else ""
        lines.append(f"| {one.method} | `{one.pattern}` | {query} | `{one.call}` | {one.source} |")
    return "\n".join(lines) + "\n"
