"""Azure Storage's blobs, path-style: put, blocks, metadata, head, ranged get, list, delete."""

from __future__ import annotations

import base64
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from xml.sax.saxutils import escape, quoteattr

from local_runner.mock_server.blobs import Blob, Upload
from local_runner.mock_server.credentials import ACCOUNT
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, whole_number

PREFIX = re.compile(rf"^/+{ACCOUNT}\.blob\.[^/]+/(?P<container>[^/]+)(?:/(?P<name>.+))?$")
MAX_BLOB = 5 * 1024**3
"""Bytes of one upload."""
_MAX_LIST = 1024 * 1024
_MAX_NAME = 1024
_NEEDS = {"GET": "r", "HEAD": "r", "PUT": "cw", "DELETE": "d"}


class BlobDoor:
    """The storage account's one door."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def admit(self, call: Call) -> None:
        """Let in a SAS, or the bearer of a token.

        Raises:
            ServiceError: 403 as storage says it.
        """
        needs = "l" if call.query.get("comp") == "list" else _NEEDS.get(call.method, "r")
        if "sig" in call.query:
            fault = self._twin.secrets.sas_fault(call.query, needs=needs)
        elif (given := call.headers.get("authorization", "")).startswith("Bearer "):
            fault = self._twin.secrets.token_fault(given.removeprefix("Bearer "))
        else:
            fault = "No credentials were given."
        if fault:
            raise _refusal(
                403, "AuthenticationFailed", f"Server failed to authenticate the request. {fault}"
            )

    def takes_content(self, call: Call) -> bool:
        """Whether the body is content to be kept, rather than something to read at once."""
        return call.method == "PUT" and call.query.get("comp", "") in ("", "block")

    def answer(self, call: Call, upload: Upload | None) -> Reply:
        """Do what the request asks; `upload` holds its content."""
        container, name = _place(call.path)
        if len(name or "") > _MAX_NAME:
            raise _refusal(400, "OutOfRangeInput", f"A name has at most {_MAX_NAME} characters.")
        what = (call.method, call.query.get("comp", ""))
        if name is None:
            if what == ("GET", "list"):
                return self._list(container, call)
            raise _refusal(
                400, "InvalidQueryParameterValue", "Only comp=list works on a container."
            )
        if call.method == "PUT":
            return self._change(container, name, call, upload)
        match what:
            case ("HEAD", _):
                return Reply(200, headers=_headers(self._found(container, name)))
            case ("GET", ""):
                return self._get(container, name, call)
            case ("DELETE", _):
                self._twin.blobs.delete(self._found(container, name))
                return Reply(202)
            case _:
                raise _refusal(
                    400, "UnsupportedOperation", f"{what[0]} comp={what[1]} is not served."
                )

    def _change(self, container: str, name: str, call: Call, upload: Upload | None) -> Reply:
        match call.query.get("comp", ""):
            case "" if upload is not None:
                return self._put(container, name, call, upload)
            case "block" if upload is not None:
                return self._put_block(container, name, call, upload)
            case "blocklist":
                return self._put_list(container, name, call)
            case "metadata":
                return self._put_metadata(container, name, call)
            case comp:
                raise _refusal(400, "UnsupportedOperation", f"PUT comp={comp} is not served.")

    def _found(self, container: str, name: str) -> Blob:
        blob = self._twin.blobs.get(container, name)
        if blob is None:
            raise _not_found()
        return blob

    def _put(self, container: str, name: str, call: Call, upload: Upload) -> Reply:
        kind = call.headers.get("x-ms-blob-type", "BlockBlob")
        if kind != "BlockBlob":
            raise _refusal(400, "InvalidBlobType", f"{kind} is not served; BlockBlob is.")
        metadata = _metadata(call.headers)
        blob = self._twin.blobs.commit(container, name, upload, metadata, allow=_allow(call))
        return _created(blob)

    def _put_block(self, container: str, name: str, call: Call, upload: Upload) -> Reply:
        block = call.query.get("blockid", "")
        try:
            valid = 0 < len(base64.b64decode(block, validate=True)) <= 64
        except ValueError:
            valid = False
        if not valid:
            raise _refusal(400, "InvalidBlobOrBlock", "blockid must be base64 of 1 to 64 bytes.")
        self._twin.blobs.put_block(container, name, block, upload)
        return Reply(201, headers={"x-ms-request-server-encrypted": "true"})

    def _put_list(self, container: str, name: str, call: Call) -> Reply:
        text = call.body.decode("utf-8", "replace")
        if len(text) > _MAX_LIST * 8 or "<!" in text:
            raise _refusal(400, "InvalidXmlDocument", "The block list is not plain XML.")
        try:
            blocks = [item.text or "" for item in ET.fromstring(text)]  # noqa: S314 - no DTD gets here
        except ET.ParseError as error:
            raise _refusal(400, "InvalidXmlDocument", str(error)) from error
        metadata = _metadata(call.headers)
        try:
            blob = self._twin.blobs.commit_blocks(
                container, name, blocks, metadata, allow=_allow(call)
            )
        except KeyError as error:
            raise _refusal(
                400, "InvalidBlockList", "A block of the list was never sent."
            ) from error
        return _created(blob)

    def _put_metadata(self, container: str, name: str, call: Call) -> Reply:
        blob = self._twin.blobs.set_metadata(self._found(container, name), _metadata(call.headers))
        return Reply(200, headers={"ETag": blob.etag, "Last-Modified": _date(blob.modified)})

    def _get(self, container: str, name: str, call: Call) -> Reply:
        # Opened while nobody can put another content in its place: a job's log grows as it is read.
        found = self._twin.blobs.open(container, name)
        if found is None:
            raise _not_found()
        blob, content = found
        headers = _headers(blob)
        kind = "application/octet-stream"
        given = call.headers.get("x-ms-range") or call.headers.get("range")
        if not given:
            return Reply(200, content, headers, kind)
        match = re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{0,18})", given)
        start = int(match[1]) if match else blob.size
        stop = min(int(match[2]) if match and match[2] else blob.size - 1, blob.size - 1)
        if start > stop:
            content.close()
            raise ServiceError(
                416,
                "InvalidRange",
                "The range specified is invalid for the current size of the resource.",
                headers={
                    "x-ms-error-code": "InvalidRange",
                    "Content-Range": f"bytes */{blob.size}",
                },
            )
        headers |= {"Content-Range": f"bytes {start}-{stop}/{blob.size}"}
        headers["Content-Length"] = str(stop - start + 1)
        headers.pop("Content-MD5")
        return Reply(206, content, headers, kind, span=(start, stop))

    def _list(self, container: str, call: Call) -> Reply:
        prefix, cut = call.query.get("prefix", ""), call.query.get("delimiter", "")
        after, most = call.query.get("marker", ""), call.query.get("maxresults")
        limit = min(whole_number(most) or 5000, 5000)
        entries: dict[str, Blob | None] = {}
        for blob in self._twin.blobs.list(container, prefix):
            rest = blob.name[len(prefix) :]
            if cut and cut in rest:
                entries[prefix + rest[: rest.index(cut) + len(cut)]] = None
            else:
                entries[blob.name] = blob
        names = [name for name in sorted(entries) if name > after]
        marker = names[limit - 1] if len(names) > limit else ""
        rows = "".join(_row(name, entries[name]) for name in names[:limit])
        body = (
            '<?xml version="1.0" encoding="utf-8"?>'
            f"<EnumerationResults ContainerName={quoteattr(container)}><Prefix>{escape(prefix)}</Prefix>"
            f"<Delimiter>{escape(cut)}</Delimiter><Blobs>{rows}</Blobs>"
            f"<NextMarker>{escape(marker)}</NextMarker></EnumerationResults>"
        )
        return Reply(200, body, media_type="application/xml")


def _allow(call: Call) -> Callable[[Blob | None], None]:
    """Raises where a condition in the headers is not met by the blob that is there."""
    unless, only = call.headers.get("if-none-match"), call.headers.get("if-match")

    def check(blob: Blob | None) -> None:
        if unless == "*" and blob is not None:
            raise _refusal(409, "BlobAlreadyExists", "The specified blob already exists.")
        same = blob is not None and only in ("*", blob.etag)
        if (only and not same) or (unless and blob is not None and unless == blob.etag):
            raise _refusal(412, "ConditionNotMet", "The condition in a header is not met.")

    return check


def _place(path: str) -> tuple[str, str | None]:
    match = PREFIX.match(path)
    assert match is not None  # noqa: S101 - the app asked before it came here
    return match["container"], match["name"]


def _row(name: str, blob: Blob | None) -> str:
    if blob is None:
        return f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>"
    metadata = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in blob.metadata.items())
    return (
        f"<Blob><Name>{escape(name)}</Name><Properties>"
        f"<Creation-Time>{_date(blob.modified)}</Creation-Time>"
        f"<Last-Modified>{_date(blob.modified)}</Last-Modified><Etag>{escape(blob.etag)}</Etag>"
        f"<Content-Length>{blob.size}</Content-Length><Content-Type>application/octet-stream</Content-Type>"
        f"<Content-MD5>{blob.md5}</Content-MD5><BlobType>BlockBlob</BlobType>"
        f"</Properties><Metadata>{metadata}</Metadata></Blob>"
    )


def _headers(blob: Blob) -> dict[str, str]:
    headers = {
        "ETag": blob.etag,
        "Last-Modified": _date(blob.modified),
        "Content-Length": str(blob.size),
        "Content-MD5": blob.md5,
        "Accept-Ranges": "bytes",
        "x-ms-blob-type": "BlockBlob",
        "x-ms-creation-time": _date(blob.modified),
        "x-ms-lease-status": "unlocked",
        "x-ms-lease-state": "available",
        "x-ms-server-encrypted": "true",
    }
    return headers | {f"x-ms-meta-{key}": value for key, value in blob.metadata.items()}


def _created(blob: Blob) -> Reply:
    return Reply(
        201,
        headers={
            "ETag": blob.etag,
            "Last-Modified": _date(blob.modified),
            "Content-MD5": blob.md5,
            "x-ms-request-server-encrypted": "true",
        },
    )


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    found = {
        key.removeprefix("x-ms-meta-"): value
        for key, value in headers.items()
        if key.startswith("x-ms-meta-")
    }
    if bad := [key for key in found if not re.fullmatch(r"[a-z_][a-z0-9_]*", key)]:
        raise _refusal(400, "InvalidMetadata", f"{bad[0]!r} is not a metadata name.")
    return found


def _not_found() -> ServiceError:
    return _refusal(404, "BlobNotFound", "The specified blob does not exist.")


def _refusal(status: int, code: str, message: str) -> ServiceError:
    return ServiceError(status, code, message, headers={"x-ms-error-code": code})


def _date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(seconds or time.time(), tz=UTC), usegmt=True)
