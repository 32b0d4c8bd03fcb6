"""Conditions in a request's headers: what lets a blob be read, or changed, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.storage.blobs import Blob
from local_runner.mock_server.storage.signatures import refusal


def not_modified(headers: Mapping[str, str], blob: Blob) -> bool:
    """Whether a reader has it already, by what it says.

    Raises:
        ServiceError: 412, a condition is not met.
    """
    _check_same(headers, blob)
    if given := headers.get("if-none-match"):
        return _among(given, blob)
    since = _seconds(headers, "if-modified-since")
    return since is not None and int(blob.modified) <= since


def allow(headers: Mapping[str, str], *, made: bool) -> Callable[[Blob | None], None]:
    """Raises where a writer's condition is not met by the blob that is there.

    `made`: whether the request makes a blob; only then may it say that none must be there.
    """

    def check(blob: Blob | None) -> None:
        if blob is None and not made:
            raise not_found()
        if made and blob is not None and headers.get("if-none-match") == "*":
            raise refusal(409, "BlobAlreadyExists", "The specified blob already exists.")
        _check_same(headers, blob)
        if blob is None:
            return
        given = headers.get("if-none-match")
        since = _seconds(headers, "if-modified-since")
        if given and _among(given, blob):
            raise _not_met()
        # By RFC 9110 an ETag, being exact, makes a date count for nothing.
        if not given and since is not None and int(blob.modified) <= since:
            raise _not_met()

    return check


def not_found() -> ServiceError:
    return refusal(404, "BlobNotFound", "The specified blob does not exist.")


def _check_same(headers: Mapping[str, str], blob: Blob | None) -> None:
    given = headers.get("if-match")
    if given:
        if blob is None or not _among(given, blob):
            raise _not_met()
        return
    since = _seconds(headers, "if-unmodified-since")
    if since is not None and blob is not None and int(blob.modified) > since:
        raise _not_met()


def _among(given: str, blob: Blob) -> bool:
    tags = [tag.strip().strip('"') for tag in given.split(",")]
    return "*" in tags or blob.etag.strip('"') in tags


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    given = headers.get(name)
    if not given:
        return None
    try:
        return parsedate_to_datetime(given).timestamp()
    except ValueError as error:
        raise refusal(400, "InvalidHeaderValue", f"{name}: {given!r} is not a date.") from error


def _not_met() -> ServiceError:
    return refusal(
        412,
        "ConditionNotMet",
        "The condition specified using HTTP conditional header(s) is not met.",
    )
