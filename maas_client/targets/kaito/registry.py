"""An adapter out of a container registry: its image's layers, through the registry's HTTP API, no Docker.

Source: the OCI distribution specification 1.1, and the token service of Docker's registries.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from maas_client.errors import AuthError, NotFoundError, TargetError
from maas_client.transport import Transport

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of an adapter, wherever in the image they are. Kaito puts them into /data."""

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_DOCKER = "docker.io"
_DOCKER_CONFIG_KEY = "https://index.docker.io/v1/"
_FIELD = re.compile(r'(\w+)="([^"]*)"')

Login = tuple[str, str]
"""Name and password."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is."""

    registry: str
    repository: str
    tag: str
    """Or a digest."""

    @classmethod
    def read(cls, image: str) -> Reference:
        """`registry/repository:tag` in its parts, with Docker's own defaults."""
        name, at, digest = image.partition("@")
        first, slash, rest = name.partition("/")
        named = bool(slash) and ("." in first or ":" in first or first == "localhost")
        registry, path = (first, rest) if named else (_DOCKER, name)
        path, _, tag = path.partition(":")
        if registry == _DOCKER and "/" not in path:
            path = f"library/{path}"
        return cls(registry, path, digest if at else tag or "latest")

    @property
    def root(self) -> str:
        """A registry on this machine has no TLS, as Docker has it."""
        host = "registry-1.docker.io" if self.registry == _DOCKER else self.registry
        here = host.partition(":")[0] in ("localhost", "127.0.0.1")
        return f"{'http' if here else 'https'}://{host}"


def login(docker_config: bytes | str, registry: str) -> Login | None:
    """What a `.dockerconfigjson`, or Docker's own config.json, knows of a registry.

    Raises:
        TargetError: it cannot be read.
    """
    try:
        entries = json.loads(docker_config).get("auths") or {}
        keys = [registry, *(f"https://{registry}{path}" for path in ("", "/v1/", "/v2/"))]
        if registry == _DOCKER:
            keys.append(_DOCKER_CONFIG_KEY)
        entry = next((entries[key] for key in keys if key in entries), None)
        if entry is None:
            return None
        if entry.get("username"):
            return entry["username"], entry.get("password", "")
        name, _, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
    except (ValueError, AttributeError, TypeError, binascii.Error) as error:
        raise TargetError("the registry's login cannot be read: it is no docker config") from error
    return (name, password) if name else None


def fetch_adapter(
    image: str, dest: Path, *, ask_login: Callable[[str], Login | None], ca: str | None = None
) -> None:
    """Bring the adapter of an image into a folder.

    Args:
        image: its reference.
        dest: an empty folder, for the layers and what is in them; `dest/adapter` is made.
        ask_login: the login for a registry, asked where the registry wants one.
        ca: PEM file of the authority that signed the registry's certificate.

    Raises:
        TargetError: no adapter is in it, or a layer is not what its digest says.
    """
    where = Reference.read(image)
    with _Line(where, ask_login, ca) as line:
        manifest = line.manifest(where.tag)
        for entry in reversed(manifest.get("layers") or ()):  # a later layer hides an earlier one
            layer = dest / "layer"
            line.blob(entry["digest"], layer)
            _take(layer, dest / "adapter")
            layer.unlink()
            if all((dest / "adapter" / name).exists() for name in ADAPTER):
                return
    raise TargetError(
        f"{image} holds no adapter: {' and '.join(ADAPTER)} are not in it",
        hint="Kaito pushes them when the tuning has ended well.",
    )


class _Line:
    """Questions about one repository; its token is fetched when it is asked for."""

    def __init__(
        self, where: Reference, ask_login: Callable[[str], Login | None], ca: str | None
    ) -> None:
        self._where = where
        self._ask_login = ask_login
        self._ca = ca
        self._line = self._open({})
        self._has_asked = False

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def manifest(self, tag: str) -> dict[str, Any]:
        found: dict[str, Any] = self._asked(lambda: self._line.get(self._path("manifests", tag)))
        if found.get("mediaType") in _INDEXES or "manifests" in found:
            return self.manifest(found["manifests"][0]["digest"])
        return found

    def blob(self, digest: str, file: Path) -> None:
        self._asked(lambda: self._read(digest, file))

    def _read(self, digest: str, file: Path) -> None:
        made = hashlib.sha256()
        with file.open("wb") as stream:
            for chunk in self._line.read(self._path("blobs", digest)):
                made.update(chunk)
                stream.write(chunk)
        if digest != f"sha256:{made.hexdigest()}":
            raise TargetError(f"{self._where.repository}: a layer is not what {digest} says")

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except AuthError as error:
            if not error.challenge or self._has_asked:
                error.hint = f"`docker login {self._where.registry}` keeps a login that may pull."
                raise
            headers = {"Authorization": self._authorization(error.challenge)}
        except NotFoundError as error:
            error.hint = (
                f"{self._where.registry} has no {self._where.repository}:{self._where.tag}."
            )
            raise
        self._has_asked = True
        self._line.close()
        self._line = self._open(headers)
        return self._asked(ask)

    def _authorization(self, challenge: str) -> str:
        """The header that the registry asks for: the login itself, or a token got with it."""
        known = self._ask_login(self._where.registry)
        basic = ""
        if known:
            basic = f"Basic {base64.b64encode(':'.join(known).encode()).decode()}"
        if challenge.lower().startswith("basic"):
            return basic
        fields = dict(_FIELD.findall(challenge))
        asked = {"service": fields.get("service", "")}
        asked["scope"] = fields.get("scope") or f"repository:{self._where.repository}:pull"
        realm, headers = fields.get("realm", ""), {"Authorization": basic} if basic else {}
        if not realm.startswith(("https://", f"{self._where.root}/")):
            raise AuthError(
                f"{self._where.registry} sends its logins to {realm!r}, which is not safe"
            )
        parts = urlsplit(realm)
        line = Transport(f"{parts.scheme}://{parts.netloc}", headers=headers, ca=self._ca)
        try:
            given = line.get(parts.path or "/", {**dict(parse_qsl(parts.query)), **asked})
        finally:
            line.close()
        return f"Bearer {given.get('token') or given.get('access_token') or ''}"

    def _open(self, headers: Mapping[str, str]) -> Transport:
        # Registries keep their layers elsewhere, and point there.
        return Transport(
            self._where.root,
            headers={"Accept": ", ".join((*_MANIFESTS, *_INDEXES)), **headers},
            ca=self._ca,
            budget=300.0,
            follow_redirects=True,
        )

    def _path(self, kind: str, name: str) -> str:
        return f"/v2/{self._where.repository}/{kind}/{name}"


def _take(layer: Path, adapter: Path) -> None:
    """The adapter's files out of a layer; nothing else is unpacked."""
    try:
        with tarfile.open(layer) as tape:
            for member in tape:
                name = Path(member.name).name
                content = tape.extractfile(member) if member.isfile() else None
                if name not in ADAPTER or content is None or (adapter / name).exists():
                    continue
                adapter.mkdir(exist_ok=True)
                with content, (adapter / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
    except tarfile.TarError as error:
        raise TargetError(f"a layer of the image cannot be read: {error}") from error
