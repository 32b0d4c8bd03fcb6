"""The blob door, through the vendor's unmodified azure-storage-blob."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import (
    BlobBlock,
    BlobServiceClient,
    BlobType,
    ContainerClient,
    ContentSettings,
    StandardBlobTier,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.blob_clients import Bearer, account_key, noise, service
from tests.mocking import Mock, running_mock

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with running_mock(tmp_path_factory.mktemp("mock"), "--engine", "simulate") as running:
        yield running


@pytest.fixture(scope="module")
def account(mock: Mock) -> Iterator[BlobServiceClient]:
    sizes = {"max_single_put_size": MIB, "max_block_size": MIB, "max_chunk_get_size": MIB}
    with service(mock, account_key(mock), max_single_get_size=MIB, **sizes) as made:
        yield made


@pytest.fixture(scope="module")
def box(account: BlobServiceClient) -> ContainerClient:
    return account.create_container("box")


def code(error: pytest.ExceptionInfo[HttpResponseError]) -> tuple[int | None, str]:
    found = getattr(error.value, "error_code", None)
    return error.value.status_code, str(getattr(found, "value", found))


def test_a_blob_in_blocks_goes_up_and_comes_down_in_parallel(box: ContainerClient) -> None:
    content = noise(9 * MIB + 12_345)
    blob = box.get_blob_client("deep/er/rows é.bin")
    made = blob.upload_blob(content, max_concurrency=8)
    assert made["etag"]
    assert blob.get_blob_properties().size == len(content)
    assert blob.download_blob(max_concurrency=8).readall() == content
    assert blob.download_blob(offset=MIB - 5, length=10).readall() == content[MIB - 5 : MIB + 5]
    committed, waiting = blob.get_block_list("all")
    assert (sum(block.size for block in committed), waiting) == (len(content), [])


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_a_blob_in_one_piece_comes_back_with_its_md5(box: ContainerClient, size: int) -> None:
    content = noise(size)
    blob = box.get_blob_client(f"whole-{size}")
    blob.upload_blob(content, validate_content=True)
    assert blob.download_blob(validate_content=True).readall() == content
    kept = blob.get_blob_properties().content_settings.content_md5
    assert bytes(kept or b"") == hashlib.md5(content, usedforsecurity=False).digest()


def test_content_is_validated_block_by_block_and_range_by_range(box: ContainerClient) -> None:
    content = noise(3 * MIB)
    blob = box.get_blob_client("validated")
    blob.upload_blob(content, validate_content=True, max_concurrency=4)
    assert blob.download_blob(validate_content=True, max_concurrency=4).readall() == content


def test_metadata_content_headers_and_tier_are_kept_and_can_be_changed(
    box: ContainerClient,
) -> None:
    blob = box.get_blob_client("dressed")
    blob.upload_blob(
        b"x" * 2 * MIB,
        metadata={"step": "1"},
        content_settings=ContentSettings(
            content_type="application/jsonl",
            content_encoding="identity",
            content_language="en",
            content_disposition="attachment",
            cache_control="no-store",
            content_md5=bytearray(b"0123456789abcdef"),
        ),
        standard_blob_tier=StandardBlobTier.COOL,
    )
    seen = blob.get_blob_properties()
    assert seen.metadata == {"step": "1"}
    assert seen.content_settings.content_type == "application/jsonl"
    assert seen.content_settings.content_disposition == "attachment"
    assert seen.content_settings.cache_control == "no-store"
    assert bytes(seen.content_settings.content_md5 or b"") == b"0123456789abcdef"  # not looked at
    assert (seen.blob_tier, seen.blob_tier_inferred) == ("Cool", None)
    blob.set_blob_metadata({"step": "2"})
    blob.set_http_headers(ContentSettings(content_type="text/plain"))
    blob.set_standard_blob_tier(StandardBlobTier.HOT)
    later = blob.get_blob_properties()
    assert (later.metadata, later.blob_tier) == ({"step": "2"}, "Hot")
    assert later.content_settings.content_type == "text/plain"
    assert later.content_settings.cache_control is None
    assert later.creation_time == seen.creation_time
    assert later.etag != seen.etag
    (listed,) = box.list_blobs("dressed", include=["metadata"])
    assert (listed.metadata, listed.content_settings.content_type) == ({"step": "2"}, "text/plain")


def test_conditions_keep_a_blob_from_being_overwritten_read_or_deleted(
    box: ContainerClient,
) -> None:
    blob = box.get_blob_client("once")
    first = blob.upload_blob(b"1")
    with pytest.raises(ResourceExistsError) as exists:
        blob.upload_blob(b"2")
    assert code(exists) == (409, "BlobAlreadyExists")
    second = blob.upload_blob(
        b"2", overwrite=True, etag=first["etag"], match_condition=MatchConditions.IfNotModified
    )
    stale: dict[str, Any] = {
        "etag": first["etag"],
        "match_condition": MatchConditions.IfNotModified,
    }
    for refused in (
        lambda: blob.upload_blob(b"3", overwrite=True, **stale),
        lambda: blob.set_blob_metadata({"a": "b"}, **stale),
        lambda: blob.download_blob(**stale),
        lambda: blob.get_blob_properties(**stale),
        lambda: blob.delete_blob(**stale),
    ):
        with pytest.raises(ResourceModifiedError) as changed:
            refused()
        assert changed.value.status_code == 412
    fresh = {"etag": second["etag"], "match_condition": MatchConditions.IfModified}
    with pytest.raises(HttpResponseError) as same:
        blob.download_blob(**fresh)
    assert same.value.status_code == 304
    assert blob.download_blob().readall() == b"2"
    blob.delete_blob(etag=second["etag"], match_condition=MatchConditions.IfNotModified)
    assert not blob.exists()


def test_dates_are_conditions_too(box: ContainerClient) -> None:
    blob = box.get_blob_client("dated")
    blob.upload_blob(b"1")
    then = blob.get_blob_properties().last_modified
    before, after = then - dt.timedelta(seconds=5), then + dt.timedelta(seconds=5)
    assert blob.download_blob(if_modified_since=before).readall() == b"1"
    assert blob.download_blob(if_unmodified_since=then).readall() == b"1"
    with pytest.raises(HttpResponseError) as unchanged:
        blob.download_blob(if_modified_since=then)
    assert unchanged.value.status_code == 304
    with pytest.raises(HttpResponseError) as changed:
        blob.download_blob(if_unmodified_since=before)
    assert changed.value.status_code == 412
    with pytest.raises(HttpResponseError) as write:
        blob.upload_blob(b"2", overwrite=True, if_modified_since=after)
    assert code(write) == (412, "ConditionNotMet")


def test_blocks_are_put_and_listed_by_hand(box: ContainerClient) -> None:
    blob = box.get_blob_client("by-hand")
    for number, text in enumerate((b"three", b"one ", b"two ")):
        blob.stage_block(f"{number}", text)
    assert [item.name for item in box.list_blobs("by-hand")] == []
    (waiting,) = box.list_blobs("by-hand", include=["uncommittedblobs"])
    assert (waiting.name, waiting.size) == ("by-hand", 0)
    with pytest.raises(ResourceNotFoundError):
        blob.download_blob()
    blob.commit_block_list([BlobBlock("1"), BlobBlock("2"), BlobBlock("0")])
    assert blob.download_blob().readall() == b"one two three"
    blob.stage_block("3", b"!")
    committed, uncommitted = blob.get_block_list("all")
    assert [block.size for block in committed] == [4, 4, 5]
    assert [block.size for block in uncommitted] == [1]
    with pytest.raises(HttpResponseError) as absent:
        blob.commit_block_list([BlobBlock("9")])
    assert absent.value.status_code == 400
    assert "InvalidBlockList" in str(absent.value)
    assert blob.download_blob().readall() == b"one two three"


def test_lists_have_prefixes_delimiters_and_pages(box: ContainerClient) -> None:
    names = [f"list/{folder}/{number}" for folder in "ab" for number in range(5)]
    for name in [*names, "list/c", "lisu"]:
        box.upload_blob(name, b"x")
    assert [item.name for item in box.list_blobs("list/")] == [*names, "list/c"]
    walked = [item.name for item in box.walk_blobs("list/", delimiter="/")]
    assert walked == ["list/a/", "list/b/", "list/c"]
    pages = box.list_blobs("list/", results_per_page=4).by_page()
    assert [len(list(page)) for page in pages] == [4, 4, 3]
    paged = box.walk_blobs("list/", delimiter="/", results_per_page=1)
    assert [item.name for item in paged] == walked
    assert list(box.list_blob_names(name_starts_with="list/b")) == names[5:]


def test_containers_are_made_listed_and_deleted(account: BlobServiceClient) -> None:
    made = account.create_container("second-box", metadata={"a": "b"})
    with pytest.raises(ResourceExistsError):
        account.create_container("second-box")
    assert made.get_container_properties().metadata == {"a": "b"}
    made.set_container_metadata({"c": "d"})
    (listed,) = account.list_containers("second", include_metadata=True)
    assert (listed.name, listed.metadata) == ("second-box", {"c": "d"})
    paged = account.list_containers(results_per_page=1)
    assert {"azureml", "second-box"} <= {item.name for item in paged}
    made.upload_blob("x", b"x")
    account.delete_container("second-box")
    assert not made.exists()
    with pytest.raises(ResourceNotFoundError) as gone:
        made.upload_blob("x", b"x")
    assert code(gone) == (404, "ContainerNotFound")
    assert list(account.create_container("second-box").list_blobs()) == []
    with pytest.raises(HttpResponseError) as odd:
        account.create_container("No_Such--Name")
    assert code(odd) == (400, "InvalidResourceName")


def test_a_blob_is_copied_within_the_account(box: ContainerClient) -> None:
    source = box.get_blob_client("copied")
    content = noise(2 * MIB)
    source.upload_blob(content, metadata={"a": "b"}, max_concurrency=2)
    target = box.get_blob_client("copy")
    assert target.start_copy_from_url(source.url)["copy_status"] == "success"
    source.delete_blob()
    assert target.download_blob().readall() == content
    assert target.get_blob_properties().metadata == {"a": "b"}
    with pytest.raises(HttpResponseError):
        target.start_copy_from_url("https://example.invalid/box/x")


def test_the_account_says_what_it_is(account: BlobServiceClient, box: ContainerClient) -> None:
    assert account.get_account_information()["account_kind"] == "StorageV2"
    assert box.get_account_information()["sku_name"] == "Standard_LRS"


def test_what_is_not_served_says_so_and_is_not_tried_again(
    mock: Mock, box: ContainerClient
) -> None:
    patient = service(mock, account_key(mock), retry_total=3, initial_backoff=60)
    blob = patient.get_blob_client("box", "leased")
    blob.upload_blob(b"x", overwrite=True)
    for refused in (blob.acquire_lease, blob.create_snapshot, blob.get_blob_tags):
        with pytest.raises(HttpResponseError, match="maas mock describe") as error:
            refused()
        assert code(error) == (501, "NotImplemented")
    with pytest.raises(HttpResponseError) as page:
        box.upload_blob("page", b"x" * 512, blob_type=BlobType.PAGEBLOB)
    assert code(page) == (400, "InvalidBlobType")


def test_a_user_reads_and_writes_with_a_token(mock: Mock, box: ContainerClient) -> None:
    with service(mock, Bearer(mock)) as user:
        blob = user.get_blob_client("box", "by-a-user")
        blob.upload_blob(b"x")
        assert blob.download_blob().readall() == b"x"
    assert box.get_blob_client("by-a-user").exists()


def test_two_who_write_the_same_blob_at_once_leave_one_of_both(box: ContainerClient) -> None:
    contents = [bytes([number]) * (2 * MIB + number) for number in range(4)]
    blob = box.get_blob_client("contested")

    def write(content: bytes) -> None:
        # Blocks of one may be taken by the list of another, as on the service: then it is refused.
        with contextlib.suppress(HttpResponseError):
            blob.upload_blob(content, overwrite=True, max_concurrency=4)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, contents))
    assert len(set(blob.download_blob().readall())) <= 4
    assert blob.get_blob_properties().size == len(blob.download_blob().readall())


letters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffd\ufffe\uffff")
segments = st.text(letters | st.sampled_from(list("% ?#&+;=/.\\'\"<>")), min_size=1, max_size=12)


@given(name=segments, prefix=segments)
@settings(max_examples=60, deadline=None)
def test_any_name_comes_back_as_it_was_given(box: ContainerClient, name: str, prefix: str) -> None:
    name = f"any/{name}"
    assume(not {".", ".."} & set(name.split("/")))  # urllib3 makes another name of these
    blob = box.get_blob_client(name)
    blob.upload_blob(name.encode(), overwrite=True, metadata={"for": "this"})
    assert blob.download_blob().readall() == name.encode()
    assert [item.name for item in box.list_blobs(name) if item.name == name] == [name]
    found = [item.name for item in box.list_blobs(f"any/{prefix}")]
    assert all(item.startswith(f"any/{prefix}") for item in found)
    walked = [item.name for item in box.walk_blobs("any/", delimiter="/")]
    assert f"any/{name[4:].partition('/')[0]}{'/' if '/' in name[4:] else ''}" in walked


@pytest.mark.parametrize("name", ["a//b", "/a", "//", "a/", "dot.", "x" * 1024, "%2F", "é" * 500])
def test_odd_names_are_names(box: ContainerClient, name: str) -> None:
    box.upload_blob(name, name.encode(), overwrite=True)
    assert box.download_blob(name).readall() == name.encode()
    assert name in [item.name for item in box.list_blobs(name)]
    box.delete_blob(name)
    assert name not in [item.name for item in box.list_blobs(name)]


def test_a_name_too_long_is_refused(box: ContainerClient) -> None:
    with pytest.raises(HttpResponseError) as error:
        box.upload_blob("x" * 1025, b"x")
    assert code(error) == (400, "OutOfRangeInput")


def test_a_digest_that_does_not_fit_is_refused_and_nothing_is_kept(box: ContainerClient) -> None:
    blob = box.get_blob_client("mismatch")
    wrong = base64.b64encode(b"0123456789abcdef").decode()
    for header, value, word in (
        ("Content-MD5", wrong, "Md5Mismatch"),
        ("x-ms-blob-content-md5", wrong, "Md5Mismatch"),
        ("Content-MD5", "short", "InvalidMd5"),
    ):
        with pytest.raises(HttpResponseError) as error:
            blob.upload_blob(b"x", headers={header: value})
        assert code(error) == (400, word)
    with pytest.raises(HttpResponseError) as block:
        blob.stage_block("1", b"x", headers={"Content-MD5": wrong})
    assert "Md5Mismatch" in str(block.value)
    assert not blob.exists()
