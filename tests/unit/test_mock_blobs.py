"""The mock's storage: whole or absent, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import os
import resource
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_runner.mock_server.control import snapshots
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.storage.blobs import Blob, BlobStore, Label
from local_runner.mock_server.storage.joining import Wanted
from local_runner.mock_server.storage.upload import Upload, receive
from local_runner.mock_server.store import Document, Store


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
    keep_block(blobs, name, block, begin_block(blobs, name, text))


def begin_block(blobs: BlobStore, name: str, text: bytes) -> Upload:
    upload = blobs.drafts.begin("box", name, size=len(text), hashed=False)
    upload.write([text])
    return upload


def keep_block(blobs: BlobStore, name: str, block: str, upload: Upload) -> None:
    upload.finish()
    blobs.drafts.keep("box", name, block, upload)
    upload.close()


def latest(*blocks: str) -> list[Wanted]:
    return [("Latest", block) for block in blocks]


def files(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.iterdir() if path.is_file())


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
    for index in folder.glob("draft-*/index"):
        if '"old"' in index.read_text():
            os.utime(index, (week, week))
    again = BlobStore(folder, store)
    assert files(folder) == [b"kept"]
    assert again.drafts.names("box") == ["new"]
    again.commit_blocks("box", "new", latest("YQ=="), Label())  # a restart loses no block
    assert content(again, "new") == b"young"


def test_a_torn_line_of_the_index_is_no_block(
    tmp_path: Path, store: Store, blobs: BlobStore
) -> None:
    put_block(blobs, "big", "YQ==", b"whole")
    (index,) = (tmp_path / "blobs").glob("draft-*/index")
    with index.open("a") as stream:
        stream.write('["Yg==", 5')
    again = BlobStore(tmp_path / "blobs", store)
    assert [block.id for block in again.blocks("box", "big")[1]] == ["YQ=="]
    put_block(again, "big", "Yw==", b"next")
    third = BlobStore(tmp_path / "blobs", store)
    third.commit_blocks("box", "big", latest("YQ==", "Yw=="), Label())
    assert content(third, "big") == b"wholenext"


def test_half_a_line_that_a_full_disk_took_is_taken_back(tmp_path: Path, blobs: BlobStore) -> None:
    put_block(blobs, "x", "AA==", b"one")
    upload = begin_block(blobs, "x", b"two")
    index = next((tmp_path / "blobs").glob("draft-*/index"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (index.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(OSError, match="space"):
            keep_block(blobs, "x", "AAA=", upload)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    upload.abandon()
    put_block(blobs, "x", "AAAA", b"three")
    again = BlobStore(tmp_path / "blobs", Store(tmp_path / "store.sqlite"))
    for found in (blobs, again):
        assert [block.id for block in found.blocks("box", "x")[1]] == ["AA==", "AAAA"]


def test_a_block_list_sent_again_after_a_lost_reply_makes_the_same_blob(blobs: BlobStore) -> None:
    for block, text in (("YQ==", b"one "), ("Yg==", b"two")):
        put_block(blobs, "big", block, text)
    for _ in range(2):
        blobs.commit_blocks("box", "big", latest("YQ==", "Yg=="), Label())
        assert content(blobs, "big") == b"one two"
    with pytest.raises(KeyError):
        blobs.commit_blocks("box", "big", latest("Yw=="), Label())
    assert content(blobs, "big") == b"one two"


def test_blocks_are_put_in_the_order_of_the_list_without_a_copy(
    tmp_path: Path, blobs: BlobStore
) -> None:
    for block, text in (("Yw==", b"three"), ("YQ==", b"one "), ("Yg==", b"two ")):
        put_block(blobs, "big", block, text)
    (draft,) = (tmp_path / "blobs").glob("draft-*/content")
    number = draft.stat().st_ino
    blob = blobs.commit_blocks("box", "big", latest("YQ==", "Yg==", "Yw=="), Label())
    assert content(blobs, "big") == b"one two three"
    assert blobs.path(blob).stat().st_ino == number
    found = blobs.open("box", "big")
    assert found is not None
    with found[1] as stream:
        stream.seek(5)
        assert stream.read(5) == b"wo th"
    blobs.link("box", "big", tmp_path / "run" / "rows")
    assert (tmp_path / "run" / "rows").read_bytes() == b"one two three"


def test_old_blocks_and_new_ones_make_a_blob_together(blobs: BlobStore) -> None:
    put_block(blobs, "big", "YQ==", b"old ")
    put_block(blobs, "big", "Yg==", b"gone ")
    blobs.commit_blocks("box", "big", latest("YQ==", "Yg=="), Label())
    put_block(blobs, "big", "YQ==", b"new ")
    wanted: list[Wanted] = [("Committed", "YQ=="), ("Uncommitted", "YQ=="), ("Latest", "YQ==")]
    blobs.commit_blocks("box", "big", wanted, Label())
    assert content(blobs, "big") == b"old new new "
    with pytest.raises(KeyError):
        blobs.commit_blocks("box", "big", [("Uncommitted", "YQ==")], Label())
    blobs.commit_blocks("box", "big", [("Committed", "YQ==")], Label())
    assert blobs.blocks("box", "big")[1] == []


def test_blocks_that_nobody_wanted_do_not_stay(tmp_path: Path, blobs: BlobStore) -> None:
    put_block(blobs, "big", "YQ==", b"x" * 100)
    put_block(blobs, "big", "Yg==", b"y")
    blobs.commit_blocks("box", "big", latest("Yg=="), Label())
    assert files(tmp_path / "blobs") == [b"y"]  # mostly waste: copied
    put_block(blobs, "big", "YQ==", b"x")
    blobs.put("box", "big", b"whole")
    assert not list((tmp_path / "blobs").glob("draft-*"))


def test_a_block_that_comes_while_its_blob_is_made_waits_for_the_next_list(
    blobs: BlobStore,
) -> None:
    put_block(blobs, "big", "YQ==", b"first")
    late = begin_block(blobs, "big", b"late")
    blobs.commit_blocks("box", "big", latest("YQ=="), Label())
    keep_block(blobs, "big", "Yg==", late)
    assert content(blobs, "big") == b"first"
    blobs.commit_blocks("box", "big", latest("YQ==", "Yg=="), Label())
    assert content(blobs, "big") == b"firstlate"


def test_an_upload_given_up_leaves_no_room_behind(tmp_path: Path, blobs: BlobStore) -> None:
    put_block(blobs, "big", "YQ==", b"kept")
    begin_block(blobs, "big", b"x" * 1000).abandon()
    (draft,) = (tmp_path / "blobs").glob("draft-*/content")
    assert draft.read_bytes() == b"kept"
    whole = blobs.begin()
    whole.write([b"x"])
    whole.abandon()
    whole.write([b"a thread that was still writing"])
    assert files(tmp_path / "blobs") == []


def test_a_refused_block_list_leaves_the_blocks(blobs: BlobStore) -> None:
    def refuse(_: Blob | None) -> None:
        raise ServiceError(412, "ConditionNotMet", "no")

    put_block(blobs, "big", "YQ==", b"x")
    with pytest.raises(ServiceError):
        blobs.commit_blocks("box", "big", latest("YQ=="), Label(), allow=refuse)
    assert [block.id for block in blobs.blocks("box", "big")[1]] == ["YQ=="]


def test_an_upload_in_many_parts_is_written_in_order(blobs: BlobStore) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(3000):
            yield number.to_bytes(2, "big") * 512

    upload = blobs.begin()
    asyncio.run(receive(parts(), upload))
    blob = blobs.commit("box", "long", upload, Label())
    expected = b"".join(number.to_bytes(2, "big") * 512 for number in range(3000))
    assert content(blobs, "long") == expected
    digest = hashlib.md5(expected, usedforsecurity=False).digest()
    assert blob.md5 == base64.b64encode(digest).decode()


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)


@given(found=st.sets(names), prefix=st.sampled_from(["", "a", "\ud7ff", "a/"]), start=names)
@settings(max_examples=60, deadline=None)
def test_a_walk_is_the_sorted_names_grouped_by_the_delimiter(
    found: set[str], prefix: str, start: str
) -> None:
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store.sqlite")
        blobs = BlobStore(Path(folder) / "blobs", store)
        for name in found:
            blob = Blob("box", name, 0, "", 0, "", "")
            store.put("blob", f"box/{name}", asdict(blob))
        store.put("blob", "boy/other", asdict(Blob("boy", "other", 0, "", 0, "", "")))
        fits = sorted(name for name in found if name.startswith(prefix) and name >= start)
        assert [name for name, _ in blobs.walk("box", prefix=prefix, start=start)] == fits
        groups = {
            prefix + name.removeprefix(prefix).partition("/")[0] + "/"
            if "/" in name.removeprefix(prefix)
            else name
            for name in found
            if name.startswith(prefix)
        }
        grouped = [name for name, _ in blobs.walk("box", prefix=prefix, delimiter="/")]
        assert grouped == sorted(groups)
        store.close()


def test_a_page_reads_no_more_documents_than_it_shows(
    blobs: BlobStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        blob = Blob("box", f"a/{number:03}", 0, "", 0, "", "")
        store.put("blob", f"box/{blob.name}", asdict(blob))
    read: list[int] = []
    between = store.between

    def counted(*args: Any, **options: Any) -> list[Document]:
        found = between(*args, **options)
        read.append(len(found))
        return found

    monkeypatch.setattr(store, "between", counted)
    assert [name for name, _ in blobs.walk("box", delimiter="/")] == ["a/"]
    assert sum(read) <= 16
    read.clear()
    assert len(list(itertools.islice(blobs.walk("box"), 10))) == 10
    assert sum(read) <= 16


def test_a_refused_overwrite_leaves_the_blob_alone(tmp_path: Path, blobs: BlobStore) -> None:
    def refuse(before: Blob | None) -> None:
        if before is not None:
            raise ServiceError(409, "BlobAlreadyExists", "it is there")

    for text in (b"first", b"second"):
        upload = blobs.begin()
        upload.write([text])
        try:
            blobs.commit("box", "once", upload, Label(), allow=refuse)
        except ServiceError:
            upload.abandon()
    assert content(blobs, "once") == b"first"
    assert len(files(tmp_path / "blobs")) == 1


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
    changed = blobs.change(before, metadata={"upload_status": "completed"})
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


def test_a_full_disk_ends_a_transaction_and_not_the_store(store: Store) -> None:
    store.put("job", "a", {"state": "Queued"})
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.put("job", "b", {"state": "x" * 100_000})
    store._db.execute("PRAGMA max_page_count=100000")
    store.put("job", "c", {"state": "Queued"})
    assert [doc.key for doc in store.list("job")] == ["c", "a"]


@pytest.mark.parametrize("step", range(8))
def test_a_kill_in_the_middle_of_going_back_leaves_one_state_or_the_other(
    tmp_path: Path, store: Store, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    blobs.put("box", "rows", b"then")
    put_block(blobs, "draft", "AA==", b"block")
    snapshots.take(store, tmp_path, "base")
    blobs.put("box", "rows", b"now")
    left = iter(range(step))
    rename, delete = Path.rename, Store.delete

    def killed(before: Any, *words: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return before(*words)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", lambda *words: killed(rename, *words))
        patch.setattr(Store, "delete", lambda *words: killed(delete, *words))
        snapshots.restore(store, tmp_path, "base")
        snapshots.take(store, tmp_path, "base")
    store.close()
    again = Store(tmp_path / "store.sqlite")
    snapshots.recover(again, tmp_path)
    assert content(BlobStore(tmp_path / "blobs", again), "rows") == b"then"
    assert snapshots.names(tmp_path) == ["base"]
    snapshots.restore(again, tmp_path, "base")
    found = BlobStore(tmp_path / "blobs", again)
    assert (content(found, "rows"), found.blocks("box", "draft")[1][0].size) == (b"then", 5)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_what_comes_while_the_state_is_replaced_is_kept_whole_or_not_at_all(
    tmp_path: Path, store: Store, blobs: BlobStore
) -> None:
    blobs.put("box", "rows", b"then")
    put_block(blobs, "parts", "AA==", b"old")
    snapshots.take(store, tmp_path, "base")
    put_block(blobs, "parts", "AA==", b"newer")
    upload, block = blobs.begin(), begin_block(blobs, "parts", b"late")
    upload.write([b"now"])
    snapshots.restore(store, tmp_path, "base")
    blobs.drafts.forget()
    with pytest.raises(FileNotFoundError):
        blobs.commit("box", "rows", upload, Label())
    keep_block(blobs, "parts", "AAA=", block)
    blobs.commit_blocks("box", "parts", latest("AA==", "AAA="), Label())
    assert (content(blobs, "rows"), content(blobs, "parts")) == (b"then", b"oldlate")


def test_what_is_overwritten_goes_only_once_the_store_knows(
    tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = blobs.put("box", "source", b"new")
    before = blobs.put("box", "target", b"old")
    seen, unlink = [], Path.unlink

    def watched(path: Path, **words: bool) -> None:
        if path.name == before.file:  # a server that is killed now finds this
            seen.append(Store(tmp_path / "store.sqlite").get("blob", "box/target"))
        unlink(path, **words)

    monkeypatch.setattr(Path, "unlink", watched)
    made = blobs.copy(source, "box", "target", Label(), allow=lambda _: None)
    assert seen == [asdict(made)]
