"""The blob door over bare HTTP: what no SDK sends, what an upload costs, and what a broken one leaves."""

from __future__ import annotations

import base64
import hashlib
import http.client
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import httpx
import pytest
from azure.storage.blob import BlobServiceClient

from tests.blob_clients import ACCOUNT_PATH, account_key, bare, noise, service, token
from tests.mocking import Mock, running_mock

MIB = 1024 * 1024
BOX = f"{ACCOUNT_PATH}/box"
_MOST_GROWTH = 48 * MIB
"""What the server may grow by while 128 MB come in: batches, threads, and what the allocator keeps."""


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with running_mock(tmp_path_factory.mktemp("mock"), "--engine", "simulate") as running:
        yield running


@pytest.fixture(scope="module")
def user(mock: Mock) -> Iterator[httpx.Client]:
    with bare(mock, {"Authorization": f"Bearer {token(mock)}"}) as client:
        assert client.put(BOX, params={"restype": "container"}).status_code == 201
        yield client


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.headers.get("x-ms-error-code", "")


def begun(
    user: httpx.Client, mock: Mock, place: str, size: int, first: bytes = b""
) -> http.client.HTTPSConnection:
    """A connection on which an upload has begun."""
    parts = urlsplit(mock.state.url)
    context = ssl.create_default_context(cafile=mock.state.ca)
    line = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context)
    line.putrequest("PUT", f"{BOX}/{place}")
    line.putheader("Authorization", user.headers["authorization"])
    line.putheader("Content-Length", str(size))
    line.endheaders(first)
    return line


def put_list(user: httpx.Client, url: str, body: str | bytes) -> httpx.Response:
    return user.put(url, params={"comp": "blocklist"}, content=body)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("<BlockList><Latest>", "InvalidXmlDocument"),
        ("", "InvalidXmlDocument"),
        ("<Other><Latest>YQ==</Latest></Other>", "InvalidXmlDocument"),
        ("<BlockList><Newest>YQ==</Newest></BlockList>", "InvalidXmlDocument"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><BlockList><Latest>&b;</Latest></BlockList>', "InvalidXmlDocument"),
        (b"\xff\xfe<BlockList/>", "InvalidXmlDocument"),
        ("<BlockList><Latest>bm9uZQ==</Latest></BlockList>", "InvalidBlockList"),
        ("<BlockList><Latest>not base64</Latest></BlockList>", "InvalidBlockList"),
    ],
)  # fmt: skip
def test_a_block_list_that_is_none_is_refused(
    user: httpx.Client, body: str | bytes, word: str
) -> None:
    assert refused(put_list(user, f"{BOX}/listed", body)) == (400, word)


def test_an_upload_says_how_long_it_is(user: httpx.Client, mock: Mock) -> None:
    answer = user.put(f"{BOX}/chunked", content=iter([b"a", b"b"]))
    assert refused(answer) == (411, "MissingContentLengthHeader")
    line = begun(user, mock, "long", 5000 * MIB + 1)
    long = line.getresponse()
    assert (long.status, long.headers["x-ms-error-code"]) == (413, "RequestBodyTooLarge")
    line.close()
    empty = user.put(f"{BOX}/x", params={"comp": "block", "blockid": "YQ=="}, content=b"")
    assert refused(empty) == (400, "InvalidHeaderValue")


@pytest.mark.parametrize("block", ["", "not base64", base64.b64encode(b"x" * 65).decode()])
def test_a_block_has_an_id(user: httpx.Client, block: str) -> None:
    answer = user.put(f"{BOX}/x", params={"comp": "block", "blockid": block}, content=b"x")
    assert refused(answer) == (400, "InvalidQueryParameterValue")


def test_conditions_may_name_several_etags(user: httpx.Client) -> None:
    url = f"{BOX}/tagged"
    etag = user.put(url, content=b"1").headers["etag"]
    several = f'"0x1", {etag}'
    assert user.get(url, headers={"If-Match": several}).status_code == 200
    assert user.get(url, headers={"If-Match": "*"}).status_code == 200
    unchanged = user.get(url, headers={"If-None-Match": several})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == etag
    assert refused(user.get(url, headers={"If-Match": '"0x1"'})) == (412, "ConditionNotMet")
    assert refused(user.put(url, content=b"2", headers={"If-None-Match": several})) == (
        412,
        "ConditionNotMet",
    )
    absent = user.put(f"{BOX}/absent", content=b"2", headers={"If-Match": "*"})
    assert refused(absent) == (412, "ConditionNotMet")
    odd = user.get(url, headers={"If-Modified-Since": "yesterday"})
    assert refused(odd) == (400, "InvalidHeaderValue")
    assert user.get(url).content == b"1"


def test_ranges_come_with_their_md5_where_asked_for(user: httpx.Client) -> None:
    url, content = f"{BOX}/ranged", noise(5 * MIB)
    user.put(url, content=content)
    asked = {"x-ms-range": "bytes=10-1009", "x-ms-range-get-content-md5": "true"}
    part = user.get(url, headers=asked)
    assert (part.status_code, part.content) == (206, content[10:1010])
    md5 = hashlib.md5(content[10:1010], usedforsecurity=False).digest()
    assert base64.b64decode(part.headers["content-md5"]) == md5
    whole = hashlib.md5(content, usedforsecurity=False).digest()
    assert base64.b64decode(part.headers["x-ms-blob-content-md5"]) == whole
    long = user.get(url, headers=asked | {"x-ms-range": "bytes=0-"})
    assert refused(long) == (400, "InvalidHeaderValue")
    tail = user.get(url, headers={"Range": f"bytes={5 * MIB - 3}-"})
    assert tail.content == content[-3:]
    past = user.get(url, headers={"x-ms-range": f"bytes={5 * MIB}-"})
    assert refused(past) == (416, "InvalidRange")
    assert past.headers["content-range"] == f"bytes */{5 * MIB}"
    user.put(f"{BOX}/empty", content=b"")
    nothing = user.get(f"{BOX}/empty", headers={"x-ms-range": "bytes=0-99"})
    assert refused(nothing) == (416, "InvalidRange")


def test_what_a_text_is_called_is_not_changed(user: httpx.Client) -> None:
    url = f"{BOX}/called"
    user.put(url, content=b"x", headers={"x-ms-blob-content-type": "text/plain"})
    assert user.get(url).headers["content-type"] == "text/plain"
    assert user.head(url).headers["content-type"] == "text/plain"


@pytest.mark.parametrize(
    "query",
    ["maxresults=0", "maxresults=-1", "maxresults=x", "marker=?", "marker=%C3%A9"],
)
def test_a_page_that_cannot_be_is_refused(user: httpx.Client, query: str) -> None:
    answer = user.get(f"{BOX}?restype=container&comp=list&{query}")
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "prefix", ["<&>\"'", "%00", "%01%1F", "%0D%0A%09", "%EF%BF%BE", "%ED%A0%80"]
)
def test_a_list_is_xml_whatever_was_asked_for(user: httpx.Client, prefix: str) -> None:
    answer = user.get(f"{BOX}?restype=container&comp=list&prefix={prefix}&delimiter={prefix}")
    assert answer.status_code == 200
    assert ET.fromstring(answer.content).tag == "EnumerationResults"  # noqa: S314 - our own


def test_a_name_cannot_reach_out_of_the_store(user: httpx.Client, mock: Mock) -> None:
    def outside() -> set[str]:
        found = mock.home.parent.rglob("*")
        return {path.name for path in found if path.is_file() and "blobs" not in path.parts}

    parts = urlsplit(mock.state.url)
    context = ssl.create_default_context(cafile=mock.state.ca)
    before = outside()
    line = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context)
    headers = {"Authorization": user.headers["authorization"]}
    for name in ("../../../../escaped", "%2e%2e%2f%2e%2e%2fescaped", "..%5c..%5cescaped"):
        line.request("PUT", f"{BOX}/{name}", body=b"x", headers=headers)
        answer = line.getresponse()
        answer.read()
        assert answer.status in (201, 400)
    line.close()
    assert outside() - before <= {"store.sqlite-wal", "store.sqlite-shm"}


def _whole(account: BlobServiceClient, content: bytes) -> None:
    blob = account.get_blob_client("box", "large-whole")
    blob.upload_blob(content, max_concurrency=1)


def _blocks(account: BlobServiceClient, content: bytes) -> None:
    account.get_blob_client("box", "large-blocks").upload_blob(content, max_concurrency=16)


@pytest.mark.parametrize(("upload", "single"), [(_whole, 256 * MIB), (_blocks, MIB)])
def test_an_upload_takes_the_server_no_memory_to_speak_of(
    mock: Mock,
    user: httpx.Client,
    upload: Callable[[BlobServiceClient, bytes], None],
    single: int,
) -> None:
    assert user.head(BOX, params={"restype": "container"}).status_code == 200
    content, key = noise(128 * MIB), account_key(mock)
    before = memory(mock, "VmRSS")
    Path(f"/proc/{mock.state.pid}/clear_refs").write_text("5")  # the peak counts from now on
    with service(mock, key, max_single_put_size=single) as account:
        upload(account, content)
    assert memory(mock, "VmHWM") - before < _MOST_GROWTH


def memory(mock: Mock, what: str) -> int:
    """Bytes of the server, by their name in /proc."""
    status = Path(f"/proc/{mock.state.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) * 1024


def test_an_upload_that_breaks_off_leaves_nothing(mock: Mock, user: httpx.Client) -> None:
    def left() -> list[Path]:
        blobs = mock.home / "blobs"
        return [*blobs.glob("upload-*"), *blobs.glob("draft-*")]

    def wait_for(there: Callable[[], bool]) -> None:
        """Until the server has heard of it: each round waits for a request."""
        assert any(there() or user.get(f"{BOX}/broken").is_success for _ in range(1000))

    before = left()
    for place in ("broken", "broken?comp=block&blockid=YQ=="):
        line = begun(user, mock, place, 8 * MIB, b"x" * 4 * MIB)
        wait_for(lambda: left() != before)
        line.close()
        wait_for(lambda: left() == before)
    assert left() == before
    assert user.head(f"{BOX}/broken").status_code == 404
