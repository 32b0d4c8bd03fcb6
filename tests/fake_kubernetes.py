"""The API of a Kubernetes cluster with Kaito in this process: enough for the real client to talk to.

Server-side apply with owners of fields and conflicts, 201 for what is made, strict structure by the CRD
(checked by jsonschema, not by our own code), pods with logs, access reviews. It runs nothing: a test says
how far a Workspace is. It proves what is asked of a cluster, not what Kaito does.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import datetime as dt
import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

from maas_client.settings import KaitoSettings
from maas_client.targets.kaito import schema
from tests.fake_registry import LOGIN

Object = dict[str, Any]
Paths = dict[tuple[str, ...], Any]

SCHEMA = {
    **copy.deepcopy(dict(schema.WORKSPACE)),
    # What only the cluster's CRD says: a client that never reads it cannot know.
    "x-of-the-cluster": True,
}
OUTPUT_IMAGE = "registry.example.com/team/adapters"


@dataclass
class RefusalError(Exception):
    """An answer that is a Status object."""

    code: int
    reason: str
    message: str


@dataclass
class FakeCluster:
    """What it has, what was asked of it, and what goes wrong."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    """(resource, name) -> object; all in one namespace."""
    owners: dict[tuple[str, str], dict[str, Paths]] = field(default_factory=dict)
    """The same -> manager -> the fields that it applied."""
    logs: dict[tuple[str, str], str] = field(default_factory=dict)
    """(pod, container) -> lines, each after its time."""
    asked: list[str] = field(default_factory=list)
    faults: list[tuple[str, int]] = field(default_factory=list)
    """A part of `METHOD /path?query`, and the status that is answered once; 0 hangs up when it is done."""
    denied: set[str] = field(default_factory=set)
    """`verb resource` that the caller may not do."""
    has_kaito: bool = True
    guard: threading.RLock = field(default_factory=threading.RLock)

    def names(self, resource: str) -> list[str]:
        return sorted(name for kind, name in self.objects if kind == resource)

    def workspace(self, name: str) -> Object:
        return self.objects["workspaces", name]

    def stands(self, name: str, state: str, **conditions: tuple[str, str, str]) -> None:
        """Let a Workspace be in a state, with conditions: (status, reason, message)."""
        at = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
        rows = [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": (at + dt.timedelta(minutes=number)).strftime(
                    "%Y-%m-%dT%H:%M:%SZ"
                ),
            }
            for number, (kind, (status, reason, message)) in enumerate(conditions.items())
        ]
        told = {"state": state} if state else {}
        with self.guard:
            self.workspace(name)["status"] = {**told, "conditions": rows}

    def runs(self, name: str, log: str, **states: Object) -> None:
        """Let a Workspace's pod have written that, its containers being in those states."""
        pod = f"{name}-x7k2p"
        entries = [{"name": key.replace("_", "-"), "state": state} for key, state in states.items()]
        labels = {"kaito.sh/workspace": name}
        body = {
            "metadata": {
                "name": pod,
                "labels": labels,
                "creationTimestamp": "2026-11-24T12:01:00Z",
            },
            "status": {"containerStatuses": entries},
        }
        with self.guard:
            self.objects["pods", pod] = body
            self.logs[pod, name] = log

    # --- what is asked ------------------------------------------------------------------------------

    def answer(self, method: str, target: str, kind: str, body: Any) -> tuple[int, Any]:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = parts.path.strip("/").split("/")
        with self.guard:
            self.asked.append(f"{method} {target}")
            if path[0] == "version":
                return 200, {"gitVersion": "v1.34.0", "major": "1", "minor": "34"}
            if path[-1] == "selfsubjectaccessreviews":
                return 201, self._review(body)
            if path[-1] == schema.CRD:
                return self._definition()
            resource, *rest = path[path.index("namespaces") + 2 :]
            self._guarded(method, resource, rest)
            if resource == "pods" and rest[1:] == ["log"]:
                return 200, self._log(rest[0], query)
            return self._object(method, resource, rest[0] if rest else None, query, kind, body)

    def _object(
        self,
        method: str,
        resource: str,
        name: str | None,
        query: dict[str, str],
        kind: str,
        body: Any,
    ) -> tuple[int, Any]:
        if name is None:
            if method == "POST":
                return self._create(resource, body)
            return 200, {"items": self._matching(resource, query.get("labelSelector", ""))}
        if method == "PATCH" and kind.startswith("application/apply-patch"):
            return self._apply(resource, name, query, body)
        found = self.objects.get((resource, name))
        if found is None:
            raise RefusalError(404, "NotFound", f'{resource} "{name}" not found')
        if method == "PATCH":
            self._merge(found, body)
        elif method == "DELETE":
            self._delete(resource, name, found)
            return 200, {"kind": "Status", "status": "Success"}
        return 200, found

    def _create(self, resource: str, body: Object) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if (resource, name) in self.objects:
            raise RefusalError(409, "AlreadyExists", f'{resource} "{name}" already exists')
        return 201, self._keep(resource, body)

    def _apply(
        self, resource: str, name: str, query: dict[str, str], body: Object
    ) -> tuple[int, Any]:
        manager = query["fieldManager"]  # a server asks for it, too
        if resource == "workspaces":
            self._check(body, strict=query.get("fieldValidation") == "Strict")
        place, mine = (resource, name), dict(_leaves(body))
        old, owners = self.objects.get(place), self.owners.get(place, {})
        if old is not None and query.get("force") != "true":
            self._conflict(manager, mine, owners)
        made = copy.deepcopy(old) if old is not None else {"metadata": {}}
        for at in owners.get(manager, {}).keys() - mine.keys():
            _cut(made, at)
        for at, value in mine.items():
            _put(made, at, value)
        if resource == "workspaces":
            self._webhook(made)
        if query.get("dryRun") != "All":
            self.owners.setdefault(place, {})[manager] = mine
            self._keep(resource, made)
        return (200 if old is not None else 201), made

    def _conflict(self, manager: str, mine: Paths, owners: Mapping[str, Paths]) -> None:
        """A field that another manager applied, with another value."""
        for other, theirs in owners.items():
            taken = [at for at in mine if at in theirs and mine[at] != theirs[at]]
            if other != manager and taken:
                raise RefusalError(
                    409,
                    "Conflict",
                    f'Apply failed with 1 conflict: conflict with "{other}": .{".".join(taken[0])}',
                )

    def _keep(self, resource: str, body: Object) -> Object:
        metadata = body["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", "2026-11-24T12:00:00Z")
        metadata["resourceVersion"] = str(len(self.asked))
        self.objects[resource, metadata["name"]] = body
        return body

    def _merge(self, found: Object, body: Object) -> None:
        for key, value in body.items():
            if isinstance(value, dict):
                self._merge(found.setdefault(key, {}), value)
            elif value is None:
                found.pop(key, None)
            else:
                found[key] = value

    def _delete(self, resource: str, name: str, found: Object) -> None:
        """The object, and what it owns."""
        del self.objects[resource, name]
        self.owners.pop((resource, name), None)
        uid = found["metadata"].get("uid")
        for place, other in list(self.objects.items()):
            if any(ref["uid"] == uid for ref in other["metadata"].get("ownerReferences", ())):
                del self.objects[place]
            if (other["metadata"].get("labels") or {}).get("kaito.sh/workspace") == name:
                self.objects.pop(place, None)

    def _check(self, body: Object, *, strict: bool) -> None:
        """The structure by the CRD, as the API server checks it."""
        wrong = [
            error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(body)
        ]
        if wrong:
            raise RefusalError(422, "Invalid", f"Workspace is invalid: {'; '.join(wrong)}")
        unknown = sorted(set(body) - set(SCHEMA["properties"]))
        unknown += sorted(
            set(body.get("tuning", {})) - set(SCHEMA["properties"]["tuning"]["properties"])
        )
        if unknown and strict:
            raise RefusalError(
                400, "BadRequest", f'strict decoding error: unknown field "{unknown[0]}"'
            )

    def _webhook(self, body: Object) -> None:
        config = body["tuning"].get("config")
        if config and ("configmaps", config) not in self.objects:
            raise RefusalError(
                400,
                "BadRequest",
                'admission webhook "validation.workspace.kaito.sh" denied the request: ConfigMap '
                f"'{config}' specified in 'config' not found in namespace 'default'",
            )

    def _matching(self, resource: str, selector: str) -> list[Object]:
        wanted = dict(pair.split("=", 1) for pair in selector.split(",") if pair)
        found = [self.objects[resource, name] for name in self.names(resource)]
        return [
            entry
            for entry in found
            if wanted.items() <= (entry["metadata"].get("labels") or {}).items()
        ]

    def _log(self, pod: str, query: dict[str, str]) -> bytes:
        text = self.logs.get((pod, query["container"]))
        if text is None:
            raise RefusalError(
                400, "BadRequest", f"container {query['container']} is waiting to start"
            )
        return text.encode()

    def _definition(self) -> tuple[int, Any]:
        if "get customresourcedefinitions" in self.denied:
            raise RefusalError(403, "Forbidden", "customresourcedefinitions is forbidden")
        if not self.has_kaito:
            raise RefusalError(
                404, "NotFound", f'customresourcedefinitions "{schema.CRD}" not found'
            )
        version = {"name": schema.VERSION, "served": True, "schema": {"openAPIV3Schema": SCHEMA}}
        return 200, {"spec": {"group": schema.GROUP, "versions": [version]}}

    def _review(self, body: Object) -> Object:
        told = body["spec"]["resourceAttributes"]
        kind = "/".join(filter(None, (told["resource"], told.get("subresource"))))
        return {**body, "status": {"allowed": f"{told['verb']} {kind}" not in self.denied}}

    def _guarded(self, method: str, resource: str, rest: list[str]) -> None:
        verb = {"GET": "get" if rest else "list", "PATCH": "patch", "POST": "create"}.get(
            method, "delete"
        )
        if f"{verb} {resource}" in self.denied:
            raise RefusalError(403, "Forbidden", f"{resource} is forbidden: cannot {verb}")


def dockerconfig(registry: str) -> Object:
    """A Secret of type kubernetes.io/dockerconfigjson, with the login of our stand-in of a registry."""
    auth = base64.b64encode(LOGIN.encode()).decode()
    raw = json.dumps({"auths": {registry: {"auth": auth}}}).encode()
    return {
        "metadata": {"name": "push"},
        "data": {".dockerconfigjson": base64.b64encode(raw).decode()},
    }


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[tuple[FakeCluster, KaitoSettings]]:
    """A cluster that answers on this machine, and the settings of a target there."""
    cluster = FakeCluster()
    cluster.objects["secrets", "push"] = dockerconfig(OUTPUT_IMAGE.partition("/")[0])
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Door", (_Door,), {"cluster": cluster}))
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        file = folder / "kubeconfig"
        file.write_text(yaml.safe_dump(_kubeconfig(f"http://127.0.0.1:{server.server_port}")))
        settings = KaitoSettings(
            "kaito", kubeconfig=str(file), output_image=OUTPUT_IMAGE, output_secret="push"
        )
        yield cluster, settings
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _kubeconfig(url: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": "token-that-nobody-may-see"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
    }


class _Door(BaseHTTPRequestHandler):
    cluster: FakeCluster
    protocol_version = "HTTP/1.1"
    wbufsize = 65_536  # head and body in one packet: two would wait for each other's receipt

    def _any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        kind = self.headers.get("Content-Type") or ""
        body = yaml.safe_load(raw) if raw else None
        fault = self._fault()
        try:
            if fault:
                code, answer = (
                    fault,
                    _status(RefusalError(fault, "Fault", "the server had an error")),
                )
            else:
                code, answer = self.cluster.answer(self.command, self.path, kind, body)
        except RefusalError as refusal:
            code, answer = refusal.code, _status(refusal)
        if fault == 0:  # done, and nobody hears of it
            self.close_connection = True
            return
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if content is answer else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815 - the server's names

    def _fault(self) -> int | None:
        for number, (part, status) in enumerate(self.cluster.faults):
            if part in f"{self.command} {self.path}":
                del self.cluster.faults[number]
                return status
        return None

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests read `asked`."""


def _status(refusal: RefusalError) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": refusal.message,
        "reason": refusal.reason,
        "code": refusal.code,
    }


def _leaves(body: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field that is no mapping; a list is one field, as in a CRD without list types."""
    if isinstance(body, Mapping) and body:
        for key, value in body.items():
            yield from _leaves(value, (*at, key))
    else:
        yield at, body


def _put(body: Object, at: tuple[str, ...], value: Any) -> None:
    for key in at[:-1]:
        body = body.setdefault(key, {})
    body[at[-1]] = copy.deepcopy(value)


def _cut(body: Object, at: tuple[str, ...]) -> None:
    for key in at[:-1]:
        body = body.get(key, {})
    body.pop(at[-1], None)
