"""The mock's secrets, and what is signed with them: bearer tokens and storage signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from local_runner.mock_server.storage.signatures import issue_sas
from maas_client.spec.rundir import read_json

TENANT = "00000000-aaaa-bbbb-cccc-000000000001"
TOKEN_SECONDS = 3600
ACCOUNT = "mockacct"


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Made once for each home."""

    token_key: str
    storage_key: str
    identity_header: str
    """What a client must send to the identity endpoint."""
    control: str
    """Opens the control door."""
    api_key: str
    """Opens the OpenAI doors, as the resource's key does on the service."""

    def token(self, audience: str, *, seconds: int = TOKEN_SECONDS) -> tuple[str, int]:
        """A bearer token and when it ends, seconds since 1970."""
        now = int(time.time())
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": now,
            "nbf": now - 60,
            "exp": now + seconds,
            "tid": TENANT,
            "oid": "00000000-aaaa-bbbb-cccc-000000000002",
            "appid": "00000000-aaaa-bbbb-cccc-000000000003",
            "name": "maas mock user",
        }
        head = _encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        body = f"{head}.{_encode(json.dumps(claims).encode())}"
        return f"{body}.{_encode(self._mac(self.token_key, body))}", now + seconds

    def token_fault(self, token: str) -> str:
        """What is wrong with a bearer token; empty if nothing is."""
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(
            _encode(self._mac(self.token_key, body)).encode(), signature.encode()
        ):
            return "The access token is invalid."
        claims = json.loads(base64.urlsafe_b64decode(body.partition(".")[2] + "=="))
        return "The access token has expired." if claims["exp"] < time.time() else ""

    def sas(self, *, permissions: str, hours: float = 24.0) -> str:
        """An account SAS, without a question mark."""
        until = time.time() + hours * 3600
        return issue_sas(ACCOUNT, self.storage_key, permissions=permissions, until=until)

    @staticmethod
    def _mac(key: str, text: str) -> bytes:
        return hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()


def same(given: str, expected: str) -> bool:
    """Compare secrets in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())


def ensure(file: Path) -> Secrets:
    """The secrets in the file; only their owner can read them.

    Those that are missing are made: all of them on first use, new ones in a home of an older version.
    """
    known = read_json(file) if file.exists() else {}
    fresh = {
        "token_key": base64.b64encode(secrets.token_bytes(32)).decode(),
        "storage_key": base64.b64encode(secrets.token_bytes(64)).decode(),
        "identity_header": secrets.token_urlsafe(24),
        "control": secrets.token_urlsafe(24),
        "api_key": secrets.token_urlsafe(32),
    }
    made = Secrets(**(fresh | known))
    if asdict(made) != known:
        write_secret(file, json.dumps(asdict(made)).encode())
    return made


def write_secret(file: Path, content: bytes) -> None:
    """Write the file whole or not at all; only its owner can read it, at no moment anybody else."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_bytes(content)
    new.replace(file)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
