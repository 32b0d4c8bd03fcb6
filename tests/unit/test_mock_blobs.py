"""The mock's storage: whole or absent, whatever happens meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from local_runner.mock_server.blobs import Blob, BlobStore
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


@pytest.fixture
def blobs(tmp_path: Path, store: Store) -> BlobStore:
    return BlobStore(tmp_path / "blobs", store)


def content(blobs: BlobStore, name: str) -> bytes:
    found = blobs.open("box", name)
    assert found is not None
    with found[1] as stream:
        return stream.read()


def put_block(blobs: BlobStore, name: str, block: str, text: bytes) -> None:
    upload = blobs.begin()
    upload.write(text)
    blobs.put_block("box", name, block, upload)


def test_a_content_that_is_being_read_stays_what_it_was(blobs: BlobStore) -> None:
    blobs.put("box", "log", b"first")
    found = blobs.open("box", "log")
    assert found is not None
    blob, stream = found
    blobs.put("box", "log", b"second, and longer")
    with stream:
        assert (blob.size, stream.read()) == (5, b"first")
    assert content(blobs, "log") == b"second, and longer"


def test_an_overwritten_content_leaves_nothing_behind(tmp_path: Path, blobs: BlobStore) -> None:
    for _ in range(5):
        blobs.put("box", "log", b"x")
    assert len(list((tmp_path / "blobs").iterdir())) == 1


def test_what_a_killed_server_left_is_swept_away(
    tmp_path: Path, store: Store, blobs: BlobStore
) -> None:
    blobs.put("box", "kept", b"kept")
    put_block(blobs, "new", "YQ==", b"young")
    put_block(blobs, "old", "YQ==", b"old")
    folder = tmp_path / "blobs"
    (folder / "upload-torn").write_bytes(b"half")
    (folder / "blob-without-a-name").write_bytes(b"lost")
    week = time.time() - 8 * 24 * 3600
    for path in folder.glob("block-*"):
        if path.read_bytes() == b"old":
            os.utime(path, (week, week))
    BlobStore(folder, store)
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"kept", b"young"]


def test_a_block_list_sent_again_after_a_lost_reply_changes_nothing(blobs: BlobStore) -> None:
    for block, text in (("YQ==", b"one "), ("Yg==", b"two")):
        put_block(blobs, "big", block, text)
    first = blobs.commit_blocks("box", "big", ["YQ==", "Yg=="], {})
    again = blobs.commit_blocks("box", "big", ["YQ==", "Yg=="], {})
    assert again == first
    assert content(blobs, "big") == b"one two"
    with pytest.raises(KeyError):
        blobs.commit_blocks("box", "big", ["Yg=="], {})


def test_a_refused_overwrite_leaves_the_blob_alone(blobs: BlobStore) -> None:
    def refuse(before: Blob | None) -> None:
        if before is not None:
            raise ServiceError(409, "BlobAlreadyExists", "it is there")

    for text in (b"first", b"second"):
        upload = blobs.begin()
        upload.write(text)
        try:
            blobs.commit("box", "once", upload, {}, allow=refuse)
        except ServiceError:
            upload.abandon()
    assert content(blobs, "once") == b"first"


def test_a_link_outlives_the_blob(tmp_path: Path, blobs: BlobStore) -> None:
    blob = blobs.put("box", "rows", b"rows")
    blobs.link("box", "rows", tmp_path / "run" / "rows.jsonl")
    blobs.delete(blob)
    assert blobs.open("box", "rows") is None
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == b"rows"
    assert blobs.link("box", "rows", tmp_path / "run" / "again.jsonl") is None


def test_metadata_set_while_the_content_changes_loses_neither(blobs: BlobStore) -> None:
    before = blobs.put("box", "rows", b"1")
    blobs.put("box", "rows", b"22")
    changed = blobs.set_metadata(before, {"upload_status": "completed"})
    assert (changed.size, changed.metadata) == (2, {"upload_status": "completed"})
    assert content(blobs, "rows") == b"22"


def test_a_killed_transaction_is_rolled_back(store: Store) -> None:
    store.put("job", "a", {"state": "Queued"})

    def half() -> None:
        with store.transaction():
            store.change("job", "a", state="Running")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert store.get("job", "a") == {"state": "Queued"}


def test_documents_are_found_by_their_state_newest_first(store: Store) -> None:
    for name, state in (("a", "Queued"), ("b", "Completed"), ("c", "Running")):
        store.put("job", name, {"state": state})
    assert [doc.key for doc in store.list("job", states=("Queued", "Running"))] == ["c", "a"]
    assert [doc.key for doc in store.list("job")] == ["c", "b", "a"]
