"""Uploads: in parts, once, verified, and going on where they stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import stamina

from maas_client.errors import AmbiguousError, TargetError
from maas_client.jobs import Transfer
from maas_client.spec.rundir import read_json, write_json
from maas_client.targets.foundry.uploads import Uploads
from tests.fake_openai import FOUNDRY, KEY, FakeService, lose, refusal

PART = 1000


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    stamina.set_testing(True, attempts=4)
    yield
    stamina.set_testing(False)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(os.urandom(4500))
    return file


Make = Callable[..., Uploads]


@pytest.fixture
def make(service: FakeService, tmp_path: Path) -> Make:
    """Uploads with one memory, however often they are made."""

    def made(*, whole_up_to: int = 100) -> Uploads:
        return Uploads(
            service.line(),
            FOUNDRY.base_url,
            part_bytes=PART,
            whole_up_to=whole_up_to,
            folder=tmp_path / "records",
        )

    return made


def boom(_: httpx.Request) -> httpx.Response:
    return refusal(403, "not today")


def test_a_file_goes_in_parts_and_arrives_as_it_is(
    service: FakeService, make: Make, rows: Path
) -> None:
    stored = make().send(rows)
    assert service.content[stored.id] == rows.read_bytes()
    assert (stored.name, stored.bytes) == ("rows.jsonl", 4500)
    assert service.count("POST /uploads/.*/parts") == 5


def test_a_small_file_goes_whole(service: FakeService, make: Make, rows: Path) -> None:
    stored = make(whole_up_to=4500).send(rows)
    assert service.content[stored.id] == rows.read_bytes()
    assert service.asked == [("POST", "/files")]


def test_a_service_without_uploads_gets_the_file_whole(
    service: FakeService, make: Make, rows: Path
) -> None:
    service.has_uploads = False
    assert service.content[make().send(rows).id] == rows.read_bytes()


def test_an_identical_file_is_not_sent_twice(service: FakeService, make: Make, rows: Path) -> None:
    first = make().send(rows)
    sent = service.count("POST")
    told: list[Transfer] = []
    assert make().send(rows, on_transfer=told.append) == first
    assert service.count("POST") == sent
    assert told == [Transfer("rows.jsonl", 4500, 4500, note="already there")]
    rows.write_bytes(rows.read_bytes()[::-1])  # the same name and size, other bytes
    assert make().send(rows).id != first.id


@pytest.mark.parametrize("change", [{"status": "error"}, {"bytes": 3}, None])
def test_a_file_that_is_gone_or_another_is_sent_again(
    service: FakeService, make: Make, rows: Path, change: dict[str, object] | None
) -> None:
    first = make().send(rows)
    if change is None:
        del service.files[first.id]
        service.files["file-0"] = {}  # the next one gets a number of its own
    else:
        service.files[first.id] |= change
    assert make().send(rows).id != first.id


def test_an_upload_goes_on_where_it_stopped(service: FakeService, make: Make, rows: Path) -> None:
    service.faults += [("/parts", lambda _: None)] * 3 + [("/parts", boom)]
    with pytest.raises(TargetError, match="not today"):
        make().send(rows)
    there = len(service.uploads["upload_1"]["parts"])
    assert 0 < there < 5
    service.asked.clear()
    told: list[Transfer] = []
    stored = make().send(rows, on_transfer=told.append)
    assert service.content[stored.id] == rows.read_bytes()
    assert service.count("/parts") == 5 - there
    assert not service.count("POST /uploads$")
    assert told[0].note == "goes on"
    assert told[0].sent >= there * PART - PART // 2
    assert told[-1].sent == told[-1].total == 4500


def test_an_upload_that_the_service_forgot_begins_again(
    service: FakeService, make: Make, rows: Path
) -> None:
    service.faults += [("/parts", lambda _: None)] * 2 + [("/parts", boom)]
    with pytest.raises(TargetError):
        make().send(rows)
    service.uploads["upload_1"]["status"] = "expired"
    stored = make().send(rows)
    assert service.content[stored.id] == rows.read_bytes()
    assert list(service.uploads) == ["upload_1", "upload_2"]


def test_an_upload_past_its_time_is_not_even_tried(
    service: FakeService, make: Make, rows: Path, tmp_path: Path
) -> None:
    service.faults += [("/complete", boom)]
    with pytest.raises(TargetError):
        make().send(rows)
    (place,) = (tmp_path / "records").glob("*.json")
    write_json(place, read_json(place) | {"expires_at": 1.0})
    service.asked.clear()
    make().send(rows)
    assert service.count("POST /uploads$") == 1
    assert service.count("/parts") == 5


def test_a_killed_record_is_no_obstacle(make: Make, rows: Path, tmp_path: Path) -> None:
    first = make().send(rows)
    (place,) = (tmp_path / "records").glob("*.json")
    place.write_text("{")
    assert make().send(rows).id != first.id


@pytest.mark.parametrize("place", ["/parts", "/complete", "POST /uploads"])
@pytest.mark.parametrize("again", [1, 3])
def test_a_lost_answer_is_made_good(
    service: FakeService, make: Make, rows: Path, place: str, again: int
) -> None:
    service.faults += [(place, lose(service))] * again
    stored = make().send(rows)
    assert service.content[stored.id] == rows.read_bytes()
    assert len(service.files) == 1


def test_a_whole_file_whose_answer_was_lost_is_looked_for(
    service: FakeService, make: Make, rows: Path
) -> None:
    service.faults.append(("POST /files", lose(service)))
    stored = make(whole_up_to=9999).send(rows)
    assert list(service.files) == [stored.id]
    assert service.count("POST /files") == 1


def test_another_file_of_that_name_and_size_is_not_taken_for_it(
    service: FakeService, make: Make, rows: Path
) -> None:
    make(whole_up_to=9999).send(rows)
    rows.write_bytes(os.urandom(4500))

    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("gone", request=request)

    service.faults.append(("POST /files", silent))
    stored = make(whole_up_to=9999).send(rows)
    assert service.content[stored.id] == rows.read_bytes()


def test_a_service_that_stays_silent_is_reported(
    service: FakeService, make: Make, rows: Path
) -> None:
    service.faults += [("POST /files", lambda _: refusal(502, "down"))] * 3
    with pytest.raises(AmbiguousError, match="down"):
        make(whole_up_to=9999).send(rows)


def test_parts_that_were_mangled_are_noticed(service: FakeService, make: Make, rows: Path) -> None:
    def mangle(_: httpx.Request) -> None:
        parts = service.uploads["upload_1"]["parts"]
        parts[next(iter(parts))] = b"x" * PART

    service.faults.append(("/complete", mangle))
    with pytest.raises(TargetError, match="md5"):
        make().send(rows)
    assert not service.files


def test_a_file_that_arrived_short_is_noticed(service: FakeService, make: Make, rows: Path) -> None:
    answer = {"id": "file-9", "bytes": 4499, "filename": "rows.jsonl", "status": "processed"}
    service.faults.append(("POST /files", lambda _: httpx.Response(200, json=answer)))
    with pytest.raises(TargetError, match="4,499 bytes arrived of 4,500"):
        make(whole_up_to=9999).send(rows)


def test_a_file_that_changes_while_it_is_sent_is_noticed(
    service: FakeService, make: Make, rows: Path, tmp_path: Path
) -> None:
    service.faults.append(("POST /files", lambda _: rows.touch() or os.utime(rows, (1, 1))))
    with pytest.raises(TargetError, match="was changed"):
        make(whole_up_to=9999).send(rows)
    assert not list((tmp_path / "records").glob("*.json"))


def test_rows_that_are_not_the_planned_ones_are_not_sent(
    service: FakeService, make: Make, rows: Path
) -> None:
    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    rows.write_bytes(b"other")
    with pytest.raises(TargetError, match="when the plan was made"):
        make().send(rows, sha256=digest)
    assert not service.asked


def test_nothing_is_made_of_the_parts_of_another_file_than_the_planned(
    service: FakeService, make: Make, rows: Path
) -> None:
    """A large file is read while it goes, and not once more before."""
    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    rows.write_bytes(os.urandom(4500))
    with pytest.raises(TargetError, match="when the plan was made"):
        make().send(rows, sha256=digest)
    assert not service.files
    method, path = service.asked[-1]
    assert (method, path.rpartition("/")[2]) == ("POST", "cancel")


def test_a_file_that_the_service_cannot_use_is_reported(
    service: FakeService, make: Make, rows: Path
) -> None:
    looks = iter(["running", "error"])

    def shown(_: httpx.Request) -> httpx.Response:
        file = service.files["file-1"] | {"status": next(looks)}
        return httpx.Response(200, json=file)

    def slow(request: httpx.Request) -> httpx.Response:
        made = service.answer(request).json()
        return httpx.Response(200, json=made | {"status": "pending"})

    service.faults += [("POST /files", slow), ("GET /files/", shown), ("GET /files/", shown)]
    with pytest.raises(TargetError, match="as error"):
        make(whole_up_to=9999).send(rows)


def test_what_is_told_only_grows_and_ends_whole(make: Make, rows: Path) -> None:
    told: list[Transfer] = []
    make().send(rows, on_transfer=told.append)
    assert [transfer.sent for transfer in told] == sorted(transfer.sent for transfer in told)
    assert told[-1].sent == 4500
    assert told[-1].bytes_per_second > 0
    assert told[-1].seconds_left == 0


def test_no_record_holds_the_key(make: Make, rows: Path, tmp_path: Path) -> None:
    make().send(rows)
    written = [file.read_text() for file in (tmp_path / "records").rglob("*") if file.is_file()]
    assert any("file-1" in text for text in written)
    assert KEY not in "".join(written)
