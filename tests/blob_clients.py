"""Clients of the mock's storage: the vendor's own, and bare HTTP."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from azure.core.credentials import AccessToken
from azure.storage.blob import BlobServiceClient

from maas_client.spec.rundir import read_json
from tests.mocking import Mock

ACCOUNT_PATH = "/mockacct.blob.core.local"


def account_key(mock: Mock) -> str:
    """The storage account's key, from where the mock keeps it for its owner."""
    return str(read_json(mock.home / "secrets.json")["storage_key"])


def account_url(mock: Mock) -> str:
    return f"{mock.state.url}{ACCOUNT_PATH}"


def service(mock: Mock, credential: Any, **options: Any) -> BlobServiceClient:
    """The unmodified client; it tries nothing twice, so that a refusal shows at once."""
    given = {"connection_verify": str(mock.state.ca), "retry_total": 0} | options
    return BlobServiceClient(account_url(mock), credential=credential, **given)


class Bearer:
    """A credential as azure-identity's are."""

    def __init__(self, mock: Mock) -> None:
        self._mock = mock

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(token(self._mock), int(time.time()) + 3600)


def token(mock: Mock) -> str:
    """A token from the managed-identity endpoint."""
    answer = httpx.get(
        f"{mock.state.identity_endpoint}?resource=https://storage.azure.com",
        headers={"X-IDENTITY-HEADER": mock.state.identity_header},
    )
    return str(answer.json()["access_token"])


@contextmanager
def bare(mock: Mock, headers: dict[str, str] | None = None) -> Iterator[httpx.Client]:
    """Plain HTTP to the mock, with no credentials but those in the headers."""
    context = ssl.create_default_context(cafile=mock.state.ca)
    base = mock.state.url
    with httpx.Client(base_url=base, verify=context, headers=headers, timeout=30) as client:
        yield client


def soon(minutes: float = 5) -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC) + dt.timedelta(minutes=minutes)


def noise(size: int) -> bytes:
    """Bytes that are nowhere alike."""
    return os.urandom(size)
