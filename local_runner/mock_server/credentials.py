"""The mock's secrets, and what is signed with them: bearer tokens and storage signatures."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlencode

from maas_client.spec.rundir import read_json

TENANT = "00000000-aaaa-bbbb-cccc-000000000001"
TOKEN_SECONDS = 3600
ACCOUNT = "mockacct"
_SIGNED = ("sp", "ss", "srt", "st", "se", "sip", "spr", "sv", "ses")


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Made once for each home."""

    token_key: str
    storage_key: str
    identity_header: str
    """What a client must send to the identity endpoint."""
    control: str
    """Opens the control door."""

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
        ends = dt.datetime.now(tz=dt.UTC) + dt.timedelta(hours=hours)
        query = {
            "sv": "2022-11-02",
            "ss": "bf",
            "srt": "sco",
            "sp": permissions,
            "se": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "spr": "https",
        }
        return urlencode(query | {"sig": self._signature(query)})

    def sas_fault(self, query: Mapping[str, str], *, needs: str) -> str:
        """What is wrong with a SAS for an operation that needs one of `needs`; empty if nothing is."""
        given = query.get("sig", "")
        if not hmac.compare_digest(self._signature(query).encode(), given.encode()):
            return "Signature did not match."
        try:
            ends = dt.datetime.strptime(query.get("se", ""), "%Y-%m-%dT%H:%M:%SZ").replace(
                tzinfo=dt.UTC
            )
        except ValueError:
            return "se is mandatory."
        if ends < dt.datetime.now(tz=dt.UTC):
            return "Signature is not valid in the specified time frame."
        if not set(needs) & set(query.get("sp", "")):
            return "This request is not authorized to perform this operation using this permission."
        return ""

    def _signature(self, query: Mapping[str, str]) -> str:
        text = "\n".join([ACCOUNT, *(query.get(key, "") for key in _SIGNED), ""])
        return base64.b64encode(self._mac(self.storage_key, text)).decode()

    @staticmethod
    def _mac(key: str, text: str) -> bytes:
        return hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()


def same(given: str, expected: str) -> bool:
    """Compare secrets in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())


def ensure(file: Path) -> Secrets:
    """The secrets in the file, made on first use; only their owner can read them."""
    if file.exists():
        return Secrets(**read_json(file))
    made = Secrets(
        token_key=base64.b64encode(secrets.token_bytes(32)).decode(),
        storage_key=base64.b64encode(secrets.token_bytes(64)).decode(),
        identity_header=secrets.token_urlsafe(24),
        control=secrets.token_urlsafe(24),
    )
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
