"""A container registry in this process: manifests, blobs, tokens, and layers that lie elsewhere."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_OCI = "application/vnd.oci.image"
LOGIN = "robot:secret-of-robot"
TOKEN = "token-of-the-registry"  # noqa: S105 - opens nothing but this


@dataclass
class FakeRegistry:
    """What it has, and what was asked of it."""

    address: str = ""
    """`127.0.0.1:port`."""
    manifests: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    wants: str = "Bearer"
    """How callers have to log in; empty lets everyone in."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path, and the Authorization header."""

    def push(self, repository: str, tag: str, *layers: Mapping[str, bytes]) -> str:
        """Put an image there, as Kaito's pusher does; returns its reference."""
        entries = []
        for files in layers:
            tape = io.BytesIO()
            with tarfile.open(fileobj=tape, mode="w") as packed:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    packed.addfile(member, io.BytesIO(content))
            blob = gzip.compress(tape.getvalue())
            digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
            self.blobs[digest] = blob
            entries.append({"mediaType": f"{_OCI}.layer.v1.tar+gzip", "digest": digest})
        self.manifests[f"{repository}:{tag}"] = {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "layers": entries,
        }
        return f"{self.address}/{repository}:{tag}"


@contextlib.contextmanager
def running_registry() -> Iterator[FakeRegistry]:
    registry = FakeRegistry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Door", (_Door,), {"registry": registry}))
    registry.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Door(BaseHTTPRequestHandler):
    registry: FakeRegistry
    protocol_version = "HTTP/1.1"
    wbufsize = 65_536  # head and body in one packet: two would wait for each other's receipt

    def do_GET(self) -> None:
        registry, path = self.registry, self.path.partition("?")[0]
        given = self.headers.get("Authorization") or ""
        registry.asked.append((self.path, given))
        basic = f"Basic {base64.b64encode(LOGIN.encode()).decode()}"
        if path.startswith("/elsewhere/"):
            self._say(200, registry.blobs[path.rpartition("/")[2]])
        elif path == "/token":
            if given == basic:
                self._say(200, json.dumps({"token": TOKEN}).encode())
            else:
                self._say(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        elif registry.wants and given != (
            f"Bearer {TOKEN}" if registry.wants == "Bearer" else basic
        ):
            realm = f'realm="http://{registry.address}/token",service="registry"'
            self._say(401, b"{}", {"WWW-Authenticate": f"{registry.wants} {realm}"})
        elif "/blobs/" in path:
            self._say(307, b"", {"Location": f"/elsewhere/{path.rpartition('/')[2]}"})
        else:
            repository, _, tag = path.removeprefix("/v2/").partition("/manifests/")
            found = registry.manifests.get(f"{repository}:{tag}")
            self._say(200 if found else 404, json.dumps(found or {}).encode())

    def _say(self, code: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests read `asked`."""
