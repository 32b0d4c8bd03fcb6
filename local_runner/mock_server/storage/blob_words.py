"""Blobs in the words of the wire: what headers say of them, and lists in XML."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from local_runner.mock_server.storage.blobs import Blob, Label
from local_runner.mock_server.storage.joining import Block, Wanted
from local_runner.mock_server.storage.signatures import refusal

_HEADERS = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition")
CONTENT_HEADERS = (*_HEADERS, "Cache-Control")
_UNKNOWN = "application/octet-stream"
_MOST_BLOCKS = 50_000
_METADATA_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECLARATION = '<?xml version="1.0" encoding="utf-8"?>'
_TIERS = ("Hot", "Cool", "Cold", "Archive")

Entry = tuple[str, Blob | None]
"""A name in a list; without a blob it stands for all that begin so."""


def label(headers: Mapping[str, str]) -> Label:
    """What a client says of a blob that it makes."""
    return Label(
        metadata=metadata(headers),
        headers=content_headers(headers),
        tier=tier(headers),
        md5=md5_of(headers, "x-ms-blob-content-md5"),
    )


def content_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Content-Type and its like, to be kept. A body's own count where nothing is said of the blob."""
    kept = {}
    for name in CONTENT_HEADERS:
        said = headers.get(f"x-ms-blob-{name.lower()}") or headers.get(name.lower())
        if said:
            kept[name] = said
    return kept


def blob_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Only what is said of the blob; for requests whose body is not its content."""
    found = {name: headers.get(f"x-ms-blob-{name.lower()}", "") for name in CONTENT_HEADERS}
    return {name: value for name, value in found.items() if value}


def tier(headers: Mapping[str, str]) -> str:
    given = headers.get("x-ms-access-tier", "")
    if given and given not in _TIERS:
        raise refusal(400, "InvalidHeaderValue", f"x-ms-access-tier: {given!r} is no tier.")
    return given


def metadata(headers: Mapping[str, str]) -> dict[str, str]:
    found = {
        key.removeprefix("x-ms-meta-"): value
        for key, value in headers.items()
        if key.startswith("x-ms-meta-")
    }
    if bad := [key for key in found if not _METADATA_NAME.fullmatch(key)]:
        raise refusal(400, "InvalidMetadata", f"{bad[0]!r} is not a metadata name.")
    return found


def md5_of(headers: Mapping[str, str], name: str) -> str:
    """The MD5 that a header gives; empty where it gives none."""
    given = headers.get(name, "")
    try:
        valid = not given or len(base64.b64decode(given, validate=True)) == 16
    except ValueError:
        valid = False
    if not valid:
        raise refusal(400, "InvalidMd5", f"{name}: the MD5 value specified is invalid.")
    return given


def check_md5(headers: Mapping[str, str], computed: str, *names: str) -> None:
    """Compare what was sent with what the client says of it."""
    for name in names:
        given = md5_of(headers, name)
        if given and given != computed:
            raise refusal(
                400,
                "Md5Mismatch",
                f"The MD5 value specified in the request, {given}, did not match with the MD5 value"
                f" calculated by the server, {computed}.",
            )


def headers_of(blob: Blob) -> dict[str, str]:
    """What a HEAD says."""
    headers = {
        "ETag": blob.etag,
        "Last-Modified": date(blob.modified),
        "Content-Length": str(blob.size),
        "Content-Type": _UNKNOWN,
        "Accept-Ranges": "bytes",
        "x-ms-blob-type": "BlockBlob",
        "x-ms-creation-time": date(blob.created or blob.modified),
        "x-ms-lease-status": "unlocked",
        "x-ms-lease-state": "available",
        "x-ms-server-encrypted": "true",
        "x-ms-access-tier": blob.tier or _TIERS[0],
    }
    if not blob.tier:
        headers["x-ms-access-tier-inferred"] = "true"
    if blob.md5:
        headers["Content-MD5"] = blob.md5
    return headers | blob.headers | {f"x-ms-meta-{key}": v for key, v in blob.metadata.items()}


def written(blob: Blob) -> dict[str, str]:
    """What the answer to a writer says."""
    headers = {
        "ETag": blob.etag,
        "Last-Modified": date(blob.modified),
        "x-ms-request-server-encrypted": "true",
    }
    return headers | ({"Content-MD5": blob.md5} if blob.md5 and not blob.blocks else {})


def date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, tz=UTC), usegmt=True)


def blob_list(
    endpoint: str,
    container: str,
    asked: Mapping[str, str],
    entries: Sequence[Entry],
    *,
    next_marker: str,
) -> str:
    """The answer to comp=list on a container."""
    include = asked.get("include", "").split(",")
    rows = "".join(_row(entry, metadata="metadata" in include) for entry in entries)
    return (
        f"{_DECLARATION}<EnumerationResults ServiceEndpoint={quoteattr(endpoint)}"
        f" ContainerName={quoteattr(container)}>{_echo(asked)}<Blobs>{rows}</Blobs>"
        f"<NextMarker>{escape(next_marker)}</NextMarker></EnumerationResults>"
    )


def container_list(
    endpoint: str,
    asked: Mapping[str, str],
    containers: Iterable[tuple[str, Mapping[str, str]]],
    *,
    next_marker: str,
) -> str:
    """The answer to comp=list on the account; each container with the headers that a HEAD gives."""
    rows = []
    for name, headers in containers:
        said = {
            key.removeprefix("x-ms-meta-"): value
            for key, value in headers.items()
            if key.startswith("x-ms-meta-")
        }
        rows.append(
            f"<Container><Name>{escape(name)}</Name><Properties>"
            f"<Last-Modified>{headers['Last-Modified']}</Last-Modified>"
            f"<Etag>{escape(headers['ETag'])}</Etag><LeaseStatus>unlocked</LeaseStatus>"
            "<LeaseState>available</LeaseState><HasImmutabilityPolicy>false</HasImmutabilityPolicy>"
            "<HasLegalHold>false</HasLegalHold></Properties>"
            f"{_metadata(said) if 'metadata' in asked.get('include', '') else ''}</Container>"
        )
    return (
        f"{_DECLARATION}<EnumerationResults ServiceEndpoint={quoteattr(endpoint)}>{_echo(asked)}"
        f"<Containers>{''.join(rows)}</Containers>"
        f"<NextMarker>{escape(next_marker)}</NextMarker></EnumerationResults>"
    )


def block_list(asked: str, committed: list[Block], waiting: list[Block]) -> str:
    """The answer to comp=blocklist."""
    parts = []
    for kind, blocks in (("Committed", committed), ("Uncommitted", waiting)):
        if asked in (kind.lower(), "all"):
            rows = "".join(
                f"<Block><Name>{escape(block.id)}</Name><Size>{block.size}</Size></Block>"
                for block in blocks
            )
            parts.append(f"<{kind}Blocks>{rows}</{kind}Blocks>")
    return f"{_DECLARATION}<BlockList>{''.join(parts)}</BlockList>"


def wanted_blocks(body: bytes) -> list[Wanted]:
    """The block list that a client sends."""
    text = body.decode("utf-8-sig", "replace")
    if "<!" in text:
        raise _bad_xml("A document type or a comment is not taken.")
    try:
        root = ET.fromstring(text)  # noqa: S314 - no DTD gets here
    except ET.ParseError as error:
        raise _bad_xml(str(error)) from error
    wanted: list[Wanted] = []
    for item in root:
        match item.tag:
            case "Committed" | "Uncommitted" | "Latest" as where:
                wanted.append((where, (item.text or "").strip()))
            case _:
                raise _bad_xml(f"{item.tag} is not expected.")
    if root.tag != "BlockList":
        raise _bad_xml(f"{root.tag} is not BlockList.")
    if len(wanted) > _MOST_BLOCKS:
        raise refusal(400, "BlockListTooLong", f"A list has at most {_MOST_BLOCKS:,} blocks.")
    return wanted


def _bad_xml(detail: str) -> Exception:
    return refusal(400, "InvalidXmlDocument", f"XML specified is not syntactically valid. {detail}")


def _echo(asked: Mapping[str, str]) -> str:
    """The question again, as the service repeats it."""
    tags = {"prefix": "Prefix", "marker": "Marker", "maxresults": "MaxResults"}
    tags["delimiter"] = "Delimiter"
    return "".join(_text(tag, asked[word]) for word, tag in tags.items() if asked.get(word))


def _text(tag: str, text: str) -> str:
    """An element. What XML cannot hold goes percent-encoded, and says so, as names do on the service."""
    if _NOT_XML.search(text):
        return f'<{tag} Encoded="true">{quote(text)}</{tag}>'
    return f"<{tag}>{escape(text, _EXACT)}</{tag}>"


_EXACT = {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"}
"""A parser would make others of these."""


def _metadata(values: Mapping[str, str]) -> str:
    inner = "".join(_text(key, value) for key, value in values.items())
    return f"<Metadata>{inner}</Metadata>"


def _row(entry: Entry, *, metadata: bool) -> str:
    name, blob = entry
    if blob is None:
        return f"<BlobPrefix>{_text('Name', name)}</BlobPrefix>"
    headers = headers_of(blob)
    shown = {"Creation-Time": headers["x-ms-creation-time"]}
    shown |= {"Last-Modified": headers["Last-Modified"], "Etag": blob.etag.strip('"')}
    shown |= {name: headers.get(name, "") for name in ("Content-Length", *CONTENT_HEADERS)}
    shown |= {"Content-MD5": blob.md5, "BlobType": "BlockBlob"}
    shown |= {"AccessTier": headers["x-ms-access-tier"]}
    if not blob.tier:
        shown["AccessTierInferred"] = "true"
    shown |= {"LeaseStatus": "unlocked", "LeaseState": "available", "ServerEncrypted": "true"}
    inner = "".join(_text(key, value) for key, value in shown.items())
    return (
        f"<Blob>{_text('Name', name)}<Properties>{inner}</Properties>"
        f"{_metadata(blob.metadata) if metadata else ''}</Blob>"
    )
