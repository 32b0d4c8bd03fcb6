"""Where in the storage account a request goes, and whether its sender may go there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from local_runner.mock_server.credentials import ACCOUNT, TENANT
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.storage.signatures import (
    Need,
    Request,
    check_sas,
    check_shared_key,
    plain,
    refusal,
)
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call

PREFIX = re.compile(rf"^/+(?P<account>{ACCOUNT}\.blob\.[^/]+)(?=/|$)")
"""The account as the first part of a path; with a public name it is the host, and here nothing."""
_MAX_NAME = 1024
_CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){2,62}|\$(?:root|logs|web)")
_ANY = "rwdlacuptfxyi"


@dataclass(frozen=True, slots=True)
class Place:
    """The account, a container, or a blob."""

    account: str
    """As the path names it; empty where the host does."""
    container: str
    name: str


def place_of(call: Call) -> Place:
    """Where the request goes. Slashes in a blob's name stay as many as were sent.

    Raises:
        ServiceError: no container or blob has such a name.
    """
    path = _path(call)
    match = PREFIX.match(unquote(path))
    rest = unquote(path)[match.end() if match else 0 :].lstrip("/")
    container, _, name = rest.partition("/")
    if container and not _CONTAINER.fullmatch(container):
        raise refusal(
            400, "InvalidResourceName", "The specified resource name contains invalid characters."
        )
    if len(name) > _MAX_NAME:
        raise refusal(400, "OutOfRangeInput", f"A name has at most {_MAX_NAME} characters.")
    return Place(match["account"] if match else "", container, name)


def is_about_account(call: Call) -> bool:
    """Whether it asks what kind of account it is; it may do so at a container or a blob, too."""
    asked = (call.query.get("restype"), call.query.get("comp"))
    return call.method in ("GET", "HEAD") and asked == ("account", "properties")


def admit(twin: Twin, call: Call, place: Place) -> None:
    """Let in a SAS, a shared key's signature, or the bearer of a token.

    Raises:
        ServiceError: 401 or 403 as storage says it.
    """
    given = call.headers.get("authorization", "")
    request = _request(twin, call, place)
    if "sig" in request.query:
        check_sas(request, twin.secrets.storage_key, _need(call, place))
        _check_overwriting(twin, request.query.get("sp", ""), call, place)
    elif given.startswith("SharedKey "):
        check_shared_key(request, twin.secrets.storage_key)
    elif given.startswith("Bearer "):
        if fault := twin.secrets.token_fault(given.removeprefix("Bearer ")):
            raise _challenge(twin, "InvalidAuthenticationInfo", fault)
    else:
        raise _challenge(twin, "NoAuthenticationInformation", "No credentials were given.")


def _path(call: Call) -> str:
    return (call.target or call.path).partition("?")[0]


def _request(twin: Twin, call: Call, place: Place) -> Request:
    host = call.headers.get("host", "")
    names = [ACCOUNT, f"{host}/{ACCOUNT}", twin.site.account, place.account]
    path, _, query = call.target.partition("?")
    if host.startswith(
        f"{ACCOUNT}."
    ):  # the host names the account, whatever a proxy made of the path
        path = PREFIX.sub("", path)
    return Request(
        method=call.method,
        path=path,
        query=plain(query),
        headers=call.headers,
        client=call.client,
        accounts=tuple(dict.fromkeys(name for name in names if name)),
        container=place.container,
        name=place.name,
    )


def _need(call: Call, place: Place) -> Need:
    """What the operation asks of a SAS, by the service's table."""
    comp = call.query.get("comp", "")
    if is_about_account(call):
        return Need(_ANY, "")
    if not place.container:
        return Need("l", "s", by_service=False)
    if not place.name:
        if comp == "list":
            return Need("l", "c")
        asked = {"GET": "r", "HEAD": "r", "PUT": "w" if comp else "cw", "DELETE": "d"}
        return Need(asked.get(call.method, "w"), "c", by_service=False)
    if call.method == "PUT":
        return Need("cw" if comp in ("", "block", "blocklist") else "w", "o")
    return Need({"GET": "r", "HEAD": "r", "DELETE": "d"}.get(call.method, "w"), "o")


def _check_overwriting(twin: Twin, given: str, call: Call, place: Place) -> None:
    """Who may only create must not overwrite."""
    creates = call.method == "PUT" and place.name and "w" not in given
    if creates and twin.blobs.get(place.container, place.name):
        raise refusal(
            403,
            "AuthorizationPermissionMismatch",
            "This request is not authorized to perform this operation using this permission.",
        )


def _challenge(twin: Twin, code: str, detail: str) -> ServiceError:
    words = "Server failed to authenticate the request. Please refer to the information in the"
    found = refusal(401, code, f"{words} www-authenticate header. {detail}")
    where = f"{twin.site.url}/{TENANT}/oauth2/authorize"
    found.headers["WWW-Authenticate"] = (
        f"Bearer authorization_uri={where} resource_id=https://storage.azure.com"
    )
    return found
