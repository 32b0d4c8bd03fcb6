"""The calls of azcopy 10, as its public source makes them, driven by hand.

azcopy itself was not run: it cannot be installed by this project's package managers. So this shows that its
calls are answered with what it reads, not that it works.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree as ET

import httpx
import pytest
from azure.storage.blob import generate_account_sas, generate_container_sas

from tests.blob_clients import ACCOUNT_PATH, account_key, bare, noise, soon
from tests.mocking import Mock, running_mock

MIB = 1024 * 1024
BLOCK = 8 * MIB
"""azcopy's own size of a block."""
HEADERS = {
    "User-Agent": "AzCopy/10.27.1 azsdk-go-azblob/v1.4.0 (go1.22; linux)",
    "Accept": "application/xml",
    "x-ms-version": "2023-08-03",
}


class AzCopy:
    """Requests with a SAS behind every address."""

    def __init__(self, line: httpx.Client, sas: str) -> None:
        self._line = line
        self._sas = sas

    def __call__(
        self,
        method: str,
        place: str,
        query: str = "",
        content: bytes | None = None,
        **headers: str,
    ) -> httpx.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        own = {"x-ms-client-request-id": str(uuid.uuid4())}
        url = f"{ACCOUNT_PATH}/{place}?{'&'.join(part for part in (query, self._sas) if part)}"
        answer = self._line.request(method, url, content=content, headers=HEADERS | own | given)
        if answer.is_success:
            assert answer.headers["x-ms-client-request-id"] == own["x-ms-client-request-id"]
        assert answer.headers["x-ms-request-id"]
        return answer

    def names(self, place: str, query: str) -> tuple[list[str], list[str], str]:
        """Blobs, directories and the marker of a page."""
        answer = self("GET", place, query)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/xml")
        tree = ET.fromstring(answer.content)  # noqa: S314 - our own
        blobs = [item.findtext("Name", "") for item in tree.iter("Blob")]
        folders = [item.findtext("Name", "") for item in tree.iter("BlobPrefix")]
        return blobs, folders, tree.findtext("NextMarker", "")


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with running_mock(tmp_path_factory.mktemp("mock"), "--engine", "simulate") as running:
        yield running


@pytest.fixture(scope="module")
def azcopy(mock: Mock) -> Iterator[AzCopy]:
    key = account_key(mock)
    whole = str(generate_account_sas("mockacct", key, "sco", "rwdlacup", soon(), services="b"))
    own = str(generate_container_sas("mockacct", "copied", key, None, "racwdl", soon()))
    with bare(mock) as line:
        make = AzCopy(line, whole)("PUT", "copied", "restype=container")
        assert make.status_code == 201  # azcopy make
        yield AzCopy(line, own)


def block_ids(count: int) -> list[str]:
    """36 bytes each: five zeros, the job's 16, its part, the file in it, and the block."""
    job = uuid.uuid4().bytes
    texts = [b"00000" + job + f"{0:05}{0:05}{number:05}".encode() for number in range(count)]
    return [base64.b64encode(text).decode() for text in texts]


def quoted(block: str) -> str:
    return block.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")


def stage(azcopy: AzCopy, place: str, content: bytes, ids: list[str]) -> None:
    """Put Block in parallel; azcopy sends no digest with a block."""
    parts = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]

    def put(item: tuple[str, bytes]) -> int:
        query = f"comp=block&blockid={quoted(item[0])}"
        kind = {"Content_Type": "application/octet-stream"}
        return azcopy("PUT", place, query, item[1], **kind).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put, zip(ids, parts, strict=True))) == {201}


def test_a_file_is_copied_up_in_blocks_and_down_in_ranges(azcopy: AzCopy) -> None:
    content = noise(3 * BLOCK + 1234)
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    ids = block_ids(4)
    missing = azcopy("HEAD", "copied/file.bin")  # with --overwrite=false
    assert (missing.status_code, missing.headers["x-ms-error-code"]) == (404, "BlobNotFound")
    info = azcopy("GET", "copied/file.bin", "comp=properties&restype=account")  # before a tier
    assert info.headers["x-ms-account-kind"] == "StorageV2"
    stage(azcopy, "copied/file.bin", content, ids)
    listed = "".join(f"<Latest>{block}</Latest>" for block in ids)
    made = azcopy(
        "PUT",
        "copied/file.bin",
        "comp=blocklist",
        f'<?xml version="1.0" encoding="UTF-8"?>\n<BlockList>{listed}</BlockList>'.encode(),
        Content_Type="application/xml",
        x_ms_blob_content_type="application/octet-stream",
        x_ms_blob_content_md5=digest,  # with --put-md5
        x_ms_access_tier="Cool",
    )
    assert made.status_code == 201
    head = azcopy("HEAD", "copied/file.bin")  # --check-length
    assert int(head.headers["content-length"]) == len(content)
    assert head.headers["content-md5"] == digest
    assert head.headers["x-ms-access-tier"] == "Cool"
    assert head.headers["x-ms-blob-type"] == "BlockBlob"
    assert head.headers["x-ms-lease-state"] == "available"
    assert head.headers["last-modified"]

    def get(start: int) -> bytes:
        stop = min(start + BLOCK, len(content)) - 1
        answer = azcopy(
            "GET",
            "copied/file.bin",
            x_ms_range=f"bytes={start}-{stop}",
            If_Match=head.headers["etag"],
        )
        assert (answer.status_code, answer.headers["etag"]) == (206, head.headers["etag"])
        assert answer.headers["content-range"] == f"bytes {start}-{stop}/{len(content)}"
        return answer.content

    with ThreadPoolExecutor(4) as pool:
        assert b"".join(pool.map(get, range(0, len(content), BLOCK))) == content
    other = azcopy("GET", "copied/file.bin", x_ms_range="bytes=0-9", If_Match='"0x1"')
    assert (other.status_code, other.headers["x-ms-error-code"]) == (412, "ConditionNotMet")


def test_a_small_file_goes_in_one_request(azcopy: AzCopy) -> None:
    digest = base64.b64encode(hashlib.md5(b"small", usedforsecurity=False).digest()).decode()
    made = azcopy(
        "PUT",
        "copied/dir/small.txt",
        "",
        b"small",
        x_ms_blob_type="BlockBlob",
        x_ms_blob_content_type="text/plain; charset=utf-8",
        x_ms_blob_content_md5=digest,
        Content_Type="application/octet-stream",
    )
    assert (made.status_code, made.headers["content-md5"]) == (201, digest)
    head = azcopy("HEAD", "copied/dir/small.txt")
    assert head.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_folder_is_listed_level_by_level(azcopy: AzCopy) -> None:
    for name in ("a", "b/c", "b/d/e"):
        put = azcopy("PUT", f"copied/tree/{name}", "", b"x", x_ms_blob_type="BlockBlob")
        assert put.status_code == 201
    assert azcopy("HEAD", "copied/tree").status_code == 404  # no blob, so perhaps a folder
    common = "comp=list&restype=container"
    assert azcopy.names("copied", f"{common}&maxresults=1&prefix=tree%2F")[0] == ["tree/a"]
    level = f"{common}&delimiter=%2F&include=metadata&prefix="
    assert azcopy.names("copied", f"{level}tree%2F") == (["tree/a"], ["tree/b/"], "")
    assert azcopy.names("copied", f"{level}tree%2Fb%2F") == (["tree/b/c"], ["tree/b/d/"], "")
    found: list[str] = []
    marker = ""
    while True:  # azcopy list
        page, _, marker = azcopy.names(
            "copied", f"{common}&include=metadata&marker={marker}&maxresults=2&prefix=tree%2F"
        )
        found += page
        if not marker:
            break
    assert found == ["tree/a", "tree/b/c", "tree/b/d/e"]
    for name in found:  # azcopy remove
        gone = azcopy("DELETE", f"copied/{name}", x_ms_delete_snapshots="include")
        assert gone.status_code == 202


def test_a_copy_that_was_cancelled_is_resumed_or_cleared_away(azcopy: AzCopy) -> None:
    ids = block_ids(2)
    stage(azcopy, "copied/stopped.bin", noise(BLOCK + 1), ids)
    waiting = azcopy("GET", "copied/stopped.bin", "blocklisttype=uncommitted&comp=blocklist")
    tree = ET.fromstring(waiting.content)  # noqa: S314 - our own
    blocks = {item.findtext("Name"): int(item.findtext("Size", "")) for item in tree.iter("Block")}
    assert blocks == {ids[0]: BLOCK, ids[1]: 1}
    both = azcopy("GET", "copied/stopped.bin", "blocklisttype=all&comp=blocklist")
    assert "<CommittedBlocks></CommittedBlocks>" in both.text
    assert azcopy("DELETE", "copied/stopped.bin").status_code == 202
    gone = azcopy("GET", "copied/stopped.bin", "blocklisttype=all&comp=blocklist")
    assert (gone.status_code, gone.headers["x-ms-error-code"]) == (404, "BlobNotFound")
    assert azcopy("DELETE", "copied/stopped.bin").status_code == 404


def test_a_sas_without_the_right_is_told_so(mock: Mock, azcopy: AzCopy) -> None:
    read = generate_container_sas("mockacct", "copied", account_key(mock), None, "rl", soon())
    with bare(mock) as line:
        answer = AzCopy(line, str(read))("PUT", "copied/x", "comp=block&blockid=YQ%3D%3D", b"x")
    assert answer.status_code == 403
    assert answer.headers["x-ms-error-code"] == "AuthorizationPermissionMismatch"
    assert azcopy("HEAD", "copied/x").status_code == 404
