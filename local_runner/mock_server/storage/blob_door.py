"""Azure Storage's blobs: put, blocks, copies, metadata, head, ranged get, list, delete."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from io import BufferedReader
from urllib.parse import urlsplit

from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.storage import blob_words as words
from local_runner.mock_server.storage.blob_place import (
    PREFIX,
    Place,
    admit,
    is_about_account,
    place_of,
)
from local_runner.mock_server.storage.blobs import Blob
from local_runner.mock_server.storage.conditions import allow, not_found, not_modified
from local_runner.mock_server.storage.containers import Containers, not_served
from local_runner.mock_server.storage.signatures import REPLACED, refusal
from local_runner.mock_server.storage.upload import Upload
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply

__all__ = ["MAX_BLOB", "PREFIX", "BlobDoor"]

_MIB = 1024 * 1024
MAX_BLOB = 5000 * _MIB
_MAX_BLOCK = 4000 * _MIB
"""Bytes of one upload, as on the service."""
_MAX_HASHED_RANGE = 4 * _MIB


class BlobDoor:
    """The storage account's one door."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self._containers = Containers(twin)

    def admit(self, call: Call) -> None:
        """Let in who may do this.

        Raises:
            ServiceError: 401 or 403 as storage says it.
        """
        admit(self._twin, call, place_of(call))

    def takes_content(self, call: Call) -> bool:
        """Whether the body is content to be kept, rather than something to read at once."""
        kept = call.method == "PUT" and call.query.get("comp", "") in ("", "block")
        return kept and "x-ms-copy-source" not in call.headers and bool(place_of(call).name)

    def begin(self, call: Call) -> Upload:
        """Room for the content that is coming; what is wrong by its headers is refused now."""
        place, headers = place_of(call), call.headers
        is_block = call.query.get("comp") == "block"
        size = _announced(call, _MAX_BLOCK if is_block else MAX_BLOB)
        words.md5_of(headers, "content-md5")
        if not is_block:
            kind = headers.get("x-ms-blob-type", "BlockBlob")
            if kind != "BlockBlob":
                raise refusal(400, "InvalidBlobType", f"{kind} is not served; BlockBlob is.")
            words.label(headers)
            return self._twin.blobs.begin()
        _check_block(call.query.get("blockid", ""))
        if not size:
            raise refusal(400, "InvalidHeaderValue", "Content-Length: a block is not empty.")
        return self._twin.blobs.drafts.begin(
            place.container, place.name, size=size, hashed="content-md5" in headers
        )

    def answer(self, call: Call, upload: Upload | None) -> Reply:
        """Do what the request asks; `upload` holds its content."""
        place = place_of(call)
        reply = self._answer(place, call, upload)
        version = call.headers.get("x-ms-version")
        headers = {**reply.headers, **({"x-ms-version": version} if version else {})}
        return replace(reply, headers=headers)

    def _answer(self, place: Place, call: Call, upload: Upload | None) -> Reply:
        if not place.name or is_about_account(call):
            return self._containers.answer(place, call)
        if "snapshot" in call.query or "versionid" in call.query:
            raise not_served(call)
        self._containers.check(place.container)
        comp = call.query.get("comp", "")
        if call.method == "PUT":
            return self._change(place, comp, call, upload)
        match (call.method, comp):
            case ("HEAD", "" | "metadata") | ("GET", "metadata"):
                return self._head(place, call)
            case ("GET", ""):
                return self._get(place, call)
            case ("GET", "blocklist"):
                return self._blocks(place, call)
            case ("DELETE", ""):
                return self._delete(place, call)
            case _:
                raise not_served(call)

    def _change(self, place: Place, comp: str, call: Call, upload: Upload | None) -> Reply:
        match comp:
            case "" if upload is not None:
                return self._put(place, call, upload)
            case "":
                return self._copy(place, call)
            case "block" if upload is not None:
                return self._put_block(place, call, upload)
            case "blocklist":
                return self._put_list(place, call)
            case "metadata":
                return self._set(place, call, metadata=words.metadata(call.headers))
            case "properties":
                md5 = words.md5_of(call.headers, "x-ms-blob-content-md5")
                return self._set(place, call, headers=words.blob_headers(call.headers), md5=md5)
            case "tier":
                return self._set(place, call, tier=words.tier(call.headers))
            case _:
                raise not_served(call)

    def _delete(self, place: Place, call: Call) -> Reply:
        blob = self._twin.blobs.get(place.container, place.name)
        if blob is not None:
            self._twin.blobs.delete(blob, allow=allow(call.headers, made=False))
        elif not self._twin.blobs.drafts.drop(place.container, place.name):
            raise not_found()  # what has blocks only can be deleted, too
        return Reply(202, headers={"x-ms-delete-type-permanent": "true"})

    def _found(self, place: Place) -> Blob:
        blob = self._twin.blobs.get(place.container, place.name)
        if blob is None:
            raise not_found()
        return blob

    def _put(self, place: Place, call: Call, upload: Upload) -> Reply:
        words.check_md5(call.headers, upload.finish(), "content-md5", "x-ms-blob-content-md5")
        blob = self._twin.blobs.commit(
            place.container,
            place.name,
            upload,
            words.label(call.headers),
            allow=allow(call.headers, made=True),
        )
        return Reply(201, headers=words.written(blob))

    def _put_block(self, place: Place, call: Call, upload: Upload) -> Reply:
        md5 = upload.finish()
        words.check_md5(call.headers, md5, "content-md5")
        block = call.query.get("blockid", "")
        self._twin.blobs.drafts.keep(place.container, place.name, block, upload)
        upload.close()
        headers = {"x-ms-request-server-encrypted": "true"}
        return Reply(201, headers=headers | ({"Content-MD5": md5} if md5 else {}))

    def _put_list(self, place: Place, call: Call) -> Reply:
        body_md5 = hashlib.md5(call.body, usedforsecurity=False).digest()
        words.check_md5(call.headers, base64.b64encode(body_md5).decode(), "content-md5")
        label = words.label(call.headers)
        try:
            blob = self._twin.blobs.commit_blocks(
                place.container,
                place.name,
                words.wanted_blocks(call.body),
                replace(label, headers=words.blob_headers(call.headers)),
                allow=allow(call.headers, made=True),
            )
        except KeyError as error:
            raise refusal(
                400, "InvalidBlockList", "The specified block list is invalid."
            ) from error
        return Reply(201, headers=words.written(blob))

    def _set(self, place: Place, call: Call, **fields: object) -> Reply:
        check = allow(call.headers, made=False)
        blob = self._twin.blobs.change(self._found(place), allow=check, **fields)
        return Reply(200, headers=words.written(blob))

    def _copy(self, place: Place, call: Call) -> Reply:
        """Copy a blob of this account. Nothing is elsewhere, so it is done at once."""
        source = self._source(call)
        label = words.label(call.headers)
        if not label.metadata:
            label = replace(label, metadata=source.metadata)
        blob = self._twin.blobs.copy(
            source,
            place.container,
            place.name,
            replace(label, headers=words.blob_headers(call.headers) or source.headers),
            allow=allow(call.headers, made=True),
        )
        headers = words.written(blob)
        headers |= {"x-ms-copy-id": str(uuid.uuid4()), "x-ms-copy-status": "success"}
        return Reply(201 if "x-ms-blob-type" in call.headers else 202, headers=headers)

    def _source(self, call: Call) -> Blob:
        """The blob to copy, which the request must be allowed to read."""
        url = urlsplit(call.headers["x-ms-copy-source"])
        target = f"{url.path}?{url.query}"
        headers = {"host": url.netloc}
        if (
            url.query == "" and "sig" not in call.query
        ):  # the caller's own right counts in its account
            headers["authorization"] = "none"
        reading = Call("GET", url.path, {}, {}, headers, target=target, client=call.client)
        place = place_of(reading)
        if not place.name or (place.account == "" and not url.netloc.startswith(_HOST)):
            raise refusal(404, "CannotVerifyCopySource", "Only this account's blobs are copied.")
        if "authorization" not in headers:
            admit(self._twin, reading, place)
        return self._found(place)

    def _head(self, place: Place, call: Call) -> Reply:
        blob = self._found(place)
        if not_modified(call.headers, blob):
            return _unchanged(blob)
        headers = words.headers_of(blob)
        if call.method == "GET":  # comp=metadata has no body
            del headers["Content-Length"]
        return Reply(200, headers=headers)

    def _blocks(self, place: Place, call: Call) -> Reply:
        committed, waiting = self._twin.blobs.blocks(place.container, place.name)
        blob = self._twin.blobs.get(place.container, place.name)
        if blob is None and not waiting:
            raise not_found()
        asked = call.query.get("blocklisttype", "committed").lower()
        headers = {"x-ms-blob-content-length": str(blob.size if blob else 0)}
        if blob:
            headers |= {"ETag": blob.etag, "Last-Modified": words.date(blob.modified)}
        body = words.block_list(asked, committed, waiting)
        return Reply(200, body, headers, media_type="application/xml")

    def _get(self, place: Place, call: Call) -> Reply:
        # Opened while nobody can put another content in its place: a job's log grows as it is read.
        found = self._twin.blobs.open(place.container, place.name)
        if found is None:
            raise not_found()
        blob, content = found
        try:
            if not_modified(call.headers, blob):
                content.close()
                return _unchanged(blob)
            return _sent(blob, content, call)
        except BaseException:
            content.close()
            raise


_HOST = "mockacct.blob."


def _sent(blob: Blob, content: BufferedReader, call: Call) -> Reply:
    headers = words.headers_of(blob)
    if "sr" in call.query:  # a service SAS may say what the reply is to be called
        headers |= {name: call.query[word] for word, name in REPLACED.items() if word in call.query}
    span = _span(call.headers, blob.size)
    if span is None:
        return Reply(200, content, headers)
    start, stop = span
    size = stop - start + 1
    headers |= {"Content-Range": f"bytes {start}-{stop}/{blob.size}", "Content-Length": str(size)}
    if whole := headers.pop("Content-MD5", ""):
        headers["x-ms-blob-content-md5"] = whole
    if call.headers.get("x-ms-range-get-content-md5", "").lower() == "true":
        headers["Content-MD5"] = _md5(content, start, size)
    return Reply(206, content, headers, span=span)


def _md5(content: BufferedReader, start: int, size: int) -> str:
    if size > _MAX_HASHED_RANGE:
        raise refusal(
            400, "InvalidHeaderValue", "x-ms-range-get-content-md5: only for ranges up to 4 MiB."
        )
    content.seek(start)
    digest = hashlib.md5(content.read(size), usedforsecurity=False).digest()
    content.seek(0)
    return base64.b64encode(digest).decode()


def _span(headers: Mapping[str, str], size: int) -> tuple[int, int] | None:
    """First and last byte that are asked for; None: all."""
    given = headers.get("x-ms-range") or headers.get("range")
    if not given:
        return None
    match = re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{0,18})", given)
    start = int(match[1]) if match else size
    stop = min(int(match[2]) if match and match[2] else size - 1, size - 1)
    if start > stop:
        raise ServiceError(
            416,
            "InvalidRange",
            "The range specified is invalid for the current size of the resource.",
            headers={"x-ms-error-code": "InvalidRange", "Content-Range": f"bytes */{size}"},
        )
    return start, stop


def _unchanged(blob: Blob) -> Reply:
    headers = {"ETag": blob.etag, "Last-Modified": words.date(blob.modified)}
    return Reply(304, headers=headers | {"x-ms-error-code": "ConditionNotMet"})


def _announced(call: Call, most: int) -> int:
    """How many bytes are coming."""
    given = call.headers.get("content-length", "")
    if "x-ms-structured-body" in call.headers:
        raise refusal(400, "UnsupportedHeader", "x-ms-structured-body is not served by the mock.")
    if not re.fullmatch("[0-9]{1,18}", given):
        raise refusal(411, "MissingContentLengthHeader", "Content-Length was not specified.")
    if int(given) > most:
        raise refusal(
            413,
            "RequestBodyTooLarge",
            f"The request body is too large and exceeds the maximum permissible limit of {most:,}.",
        )
    return int(given)


def _check_block(block: str) -> None:
    try:
        valid = 0 < len(base64.b64decode(block, validate=True)) <= 64
    except ValueError:
        valid = False
    if not valid:
        raise refusal(400, "InvalidQueryParameterValue", "blockid must be base64 of 1 to 64 bytes.")
