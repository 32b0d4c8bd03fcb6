"""Storage's signatures: what a shared access signature or a shared key signs, and what it lets in.

Strings are built as the service builds them, and compared in constant time. Nothing here knows blobs.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from ipaddress import IPv4Address
from urllib.parse import unquote, urlencode

from local_runner.mock_server.errors import ServiceError

SAS_VERSION = "2022-11-02"
_OLDEST_SAS = "2015-04-05"
_SCOPED_SAS = "2020-12-06"
"""From this version on, the encryption scope is signed."""
_TYPED_SAS = "2018-11-09"
"""From this version on, a service SAS signs its kind and its snapshot."""
_SKEW = dt.timedelta(minutes=15)
"""How far a signed request's date may be from ours."""
DATASTORE = "rcwdlu"
"""What listSecrets of a datastore permits."""
_SLOT = 1800
"""Seconds between two ends of the SAS strings that we issue."""
_LONGEST = 8 * 24 * 3600
"""No SAS of ours lives longer than these seconds."""
_WHOLE_KEY = 42
"""Bytes that `sv`, `sig` and their values decode to: a shorter key would not hold the signature."""
REPLACED = {
    "rscc": "Cache-Control",
    "rscd": "Content-Disposition",
    "rsce": "Content-Encoding",
    "rscl": "Content-Language",
    "rsct": "Content-Type",
}
_ORDER = "!#$%&*.^_`|~+0123456789abcdefghijklmnopqrstuvwxyz"
"""The service sorts header names like words: hyphens count only between equals."""
_SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


@dataclass(frozen=True, slots=True)
class Request:
    """What of a request is signed, or judged by what was signed."""

    method: str
    path: str
    """As it was sent: still quoted, without the query."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    client: str
    """The address it came from; empty where that is not known."""
    accounts: tuple[str, ...]
    """The names by which clients know the account. All stand for the one account, with its one key."""
    container: str
    name: str
    """Empty where the request is about the container."""


@dataclass(frozen=True, slots=True)
class Need:
    """What an operation asks of a SAS."""

    permissions: str
    """One of these is enough."""
    kind: str
    """`s` the account, `c` a container, `o` a blob."""
    by_service: bool = True
    """Whether a service SAS can give it at all."""


def mac(key: bytes, text: str) -> str:
    """HMAC-SHA256, in base64."""
    return base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()


def account_sas(account: str, key: str, *, permissions: str, ends: dt.datetime) -> str:
    """An account SAS for blobs, its parts in the order in which the service's listSecrets sends them."""
    query = {
        "sv": SAS_VERSION,
        "se": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "srt": "co",
        "ss": "bf",
        "sp": permissions,
    }
    signature = mac(base64.b64decode(key), _account_text(account, query))
    return urlencode({"sv": SAS_VERSION, "sig": signature} | query)


def issue_sas(account: str, key: str, *, permissions: str, until: float) -> str:
    """The SAS that we hand out for a time: the same for all who ask in the same half an hour.

    azure-ai-ml signs log addresses with this very string as its key, read as if it were base64. So it
    has to be readable as that, and we have to know again what we issued, which is why its end is rounded:
    what can be computed again need not be remembered.
    """
    return _issued_in(account, key, permissions, int(until // _SLOT + 1))


@lru_cache(maxsize=1024)
def _issued_in(account: str, key: str, permissions: str, slot: int) -> str:
    for second in range(_SLOT):
        ends = dt.datetime.fromtimestamp(slot * _SLOT + second, tz=dt.UTC)
        text = account_sas(account, key, permissions=permissions, ends=ends)
        if len(_as_key(text)) >= _WHOLE_KEY:
            return text
    raise AssertionError  # about every second string is readable


def check_sas(request: Request, key: str, need: Need) -> dict[str, str]:
    """Let in who has a SAS; the headers that it replaces in the reply.

    Raises:
        ServiceError: 403, with storage's code.
    """
    query = request.query
    if query.get("sv", "") < _OLDEST_SAS:
        raise denied(f"sv is mandatory, and {_OLDEST_SAS} or later.")
    if "skoid" in query or "si" in query:
        raise denied("User delegation keys and stored access policies are not served.")
    if "ss" in query:
        _check_account_sas(request, key, need)
        return {}
    return _check_service_sas(request, key, need)


def check_shared_key(request: Request, key: str) -> None:
    """Let in who signed the request with the account's key.

    Raises:
        ServiceError: 403, with storage's code.
    """
    given = request.headers.get("authorization", "").removeprefix("SharedKey ")
    account, _, signature = given.partition(":")
    _check_date(request.headers)
    names = [name for name in request.headers if name.startswith("x-ms-")]
    # The documentation sorts the names by their bytes; the service and its SDK sort them as words.
    orders = (sorted(names), sorted(names, key=_by_word))
    texts = [_shared_key_text(request, account, order) for order in orders]
    valid = [hmac.compare_digest(mac(base64.b64decode(key), text), signature) for text in texts]
    if account not in request.accounts or not any(valid):
        raise denied("The MAC signature found in the HTTP request is not the same as any computed.")


def denied(detail: str) -> ServiceError:
    """Storage's word for a signature that does not hold."""
    return refusal(
        403,
        "AuthenticationFailed",
        "Server failed to authenticate the request. Make sure the value of Authorization header is"
        f" formed correctly including the signature. {detail}",
    )


def refusal(status: int, code: str, message: str) -> ServiceError:
    """A refusal in storage's form: its code stands in a header, too."""
    return ServiceError(status, code, message, headers={"x-ms-error-code": code})


def _check_account_sas(request: Request, key: str, need: Need) -> None:
    query = request.query
    texts = [_account_text(account, query) for account in request.accounts]
    if not _matches([base64.b64decode(key)], texts, query.get("sig", "")):
        raise denied("Signature did not match.")
    _check_terms(request)
    if "b" not in query.get("ss", ""):
        raise _unauthorized("AuthorizationServiceMismatch", "service")
    if need.kind not in query.get("srt", ""):
        raise _unauthorized("AuthorizationResourceTypeMismatch", "resource type")
    _check_permission(query.get("sp", ""), need)


def _check_service_sas(request: Request, key: str, need: Need) -> dict[str, str]:
    query = request.query
    if query.get("sr") not in ("b", "c"):
        raise denied("sr must be b or c.")
    texts = [_service_text(account, request) for account in request.accounts]
    given = query.get("sig", "")
    if not _matches([base64.b64decode(key)], texts, given):
        _check_signed_by_sas(request, key, texts, given)
    _check_terms(request)
    if not need.by_service or (need.kind == "c" and query["sr"] == "b"):
        raise _unauthorized("AuthorizationFailure", "signature")
    _check_permission(query.get("sp", ""), need)
    return {header: query[word] for word, header in REPLACED.items() if word in query}


def _check_signed_by_sas(request: Request, key: str, texts: list[str], given: str) -> None:
    """Let in who signed with a SAS that we issued as the key, for no more and no longer than that one.

    The service itself has no such rule: azure-ai-ml needs it to follow the logs of a job.
    """
    query = request.query
    ends = _moment(query.get("se", ""))
    if ends is None or not set(query.get("sp", "")) <= {"r"}:
        raise denied("Signature did not match.")
    keys = (_as_key(text) for text in _issued(request.accounts[0], key, ends))
    if not _matches(keys, texts, given):
        raise denied("Signature did not match.")


def _issued(account: str, key: str, ends: dt.datetime) -> Iterator[str]:
    """Every SAS for a datastore that we may have issued and that lives at least until then."""
    first = max(ends.timestamp(), dt.datetime.now(tz=dt.UTC).timestamp())
    for until in range(int(first) - _SLOT, int(first) + _LONGEST, _SLOT):
        text = issue_sas(account, key, permissions=DATASTORE, until=until)
        if (_moment(plain(text)["se"]) or ends) >= ends:
            yield text


def _as_key(text: str) -> bytes:
    """A text read as base64 as Python's lenient reader does it; empty where that fails."""
    try:
        return base64.b64decode(text)
    except binascii.Error:
        return b""


def _matches(keys: Iterable[bytes], texts: list[str], given: str) -> bool:
    if not given.isascii():
        return False
    return any(hmac.compare_digest(mac(key, text), given) for key in keys for text in texts)


def _check_terms(request: Request) -> None:
    """The time and the address that a SAS is good for."""
    query, now = request.query, dt.datetime.now(tz=dt.UTC)
    start, ends = query.get("st", ""), _moment(query.get("se", ""))
    begins = _moment(start) if start else now
    if ends is None or begins is None:
        raise denied("se is mandatory, and st and se are times in ISO 8601, UTC.")
    if not begins <= now < ends:
        raise denied(
            f"Signature not valid in the specified time frame: Start [{start}] - Expiry [{query['se']}]"
            f" - Current [{now:%Y-%m-%dT%H:%M:%SZ}]"
        )
    if not _is_among(request.client, query.get("sip", "")):
        raise _unauthorized("AuthorizationSourceIPMismatch", "source IP")


def _is_among(client: str, addresses: str) -> bool:
    """Whether the client is one of an address, or of two and all between; none: everybody is."""
    low, _, high = addresses.partition("-")
    try:
        return not low or IPv4Address(low) <= IPv4Address(client) <= IPv4Address(high or low)
    except ValueError:  # one of them is none, or one of another kind
        return False


def _check_permission(given: str, need: Need) -> None:
    if not set(need.permissions) & set(given):
        raise _unauthorized("AuthorizationPermissionMismatch", "permission")


def _unauthorized(code: str, what: str) -> ServiceError:
    return refusal(
        403, code, f"This request is not authorized to perform this operation using this {what}."
    )


def _moment(text: str) -> dt.datetime | None:
    """A time as a SAS may write it: to the day, the minute, the second or finer."""
    pattern = r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,7})?)?Z)?"
    if not re.fullmatch(pattern, text, re.ASCII):
        return None
    try:
        found = dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d", r"\1", text.removesuffix("Z")))
    except ValueError:
        return None
    return found.replace(tzinfo=dt.UTC)


def _account_text(account: str, query: Mapping[str, str]) -> str:
    names = ["sp", "ss", "srt", "st", "se", "sip", "spr", "sv"]
    if query.get("sv", "") >= _SCOPED_SAS:
        names.append("ses")
    return "\n".join([account, *(query.get(name, "") for name in names), ""])


def _service_text(account: str, request: Request) -> str:
    query = request.query
    resource = f"/blob/{account}/{request.container}"
    if query.get("sr") == "b":
        resource += f"/{request.name}"
    parts = [*_values(query, "sp", "st", "se"), resource, *_values(query, "si", "sip", "spr", "sv")]
    if query.get("sv", "") >= _TYPED_SAS:
        parts += _values(query, "sr", "snapshot")
    if query.get("sv", "") >= _SCOPED_SAS:
        parts += _values(query, "ses")
    return "\n".join([*parts, *_values(query, *REPLACED)])


def _values(query: Mapping[str, str], *names: str) -> list[str]:
    return [query.get(name, "") for name in names]


def _check_date(headers: Mapping[str, str]) -> None:
    given = headers.get("x-ms-date") or headers.get("date", "")
    try:
        sent = parsedate_to_datetime(given)
        old = abs(dt.datetime.now(tz=dt.UTC) - sent) > _SKEW
    except (TypeError, ValueError):  # no date, or one without a zone
        old = True
    if old:
        raise denied("Request date header too old, or missing.")


def _by_word(name: str) -> tuple[list[int], list[bool]]:
    return [_ORDER.find(sign) for sign in name if sign in _ORDER], [sign == "-" for sign in name]


def _shared_key_text(request: Request, account: str, names: list[str]) -> str:
    headers = dict(request.headers)
    if headers.get("content-length") == "0":
        headers["content-length"] = ""
    if "x-ms-date" in headers:
        headers["date"] = ""
    lines = [request.method, *(headers.get(name, "") for name in _SIGNED_HEADERS)]
    lines += [f"{name}:{headers[name]}" for name in names]
    lines.append(f"/{account}{request.path}")
    lines += [f"{name.lower()}:{value}" for name, value in sorted(request.query.items())]
    return "\n".join(lines)


def plain(query: str) -> dict[str, str]:
    """A query as it was sent, unquoted. A plus sign stays one, as in what clients sign."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    return {unquote(name): unquote(value) for name, _, value in pairs}
