"""The strings that storage signs, and the SAS that the mock hands out."""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest
from azure.storage.blob import generate_account_sas, generate_blob_sas
from hypothesis import given
from hypothesis import strategies as st

from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.storage.signatures import Need, Request, check_sas, issue_sas, plain

KEY = base64.b64encode(b"k" * 64).decode()
READ = Need("r", "o")
ENDS = dt.datetime(2099, 1, 1, tzinfo=dt.UTC)


def request(query: str, **fields: Any) -> Request:
    made = Request(
        method="GET",
        path="/mockacct/box/name",
        query=plain(query),
        headers={},
        client="127.0.0.1",
        accounts=("mockacct",),
        container="box",
        name="name",
    )
    return replace(made, **fields)


def code(query: str, need: Need = READ, **fields: Any) -> str:
    """What it is refused with; empty where it is let in."""
    try:
        check_sas(request(query, **fields), KEY, need)
    except ServiceError as error:
        return error.code
    return ""


@given(until=st.floats(1.6e9, 4e9))
def test_what_we_hand_out_can_be_read_as_a_key_and_holds_its_signature(until: float) -> None:
    sas = issue_sas("mockacct", KEY, permissions="rcwdlu", until=until)
    key = base64.b64decode(f"?{sas}")  # as azure-ai-ml does it, with the question mark
    query = dict(parse_qsl(sas))
    ends = dt.datetime.fromisoformat(query["se"]).timestamp()
    assert until < ends <= until + 3600
    sign = query["sig"][20]
    if sign.isalnum():  # one that is sent as it is
        place = sas.index("&sig=") + 5 + len(quote(query["sig"][:20], safe=""))
        changed = sas[:place] + ("A" if sign != "A" else "B") + sas[place + 1 :]
        assert base64.b64decode(f"?{changed}") != key
    assert len(key) >= 42


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s != "\n"),
    disposition=st.sampled_from([None, "inline"]),
    snapshot=st.sampled_from([None, "2020-01-01T00:00:00.0000000Z"]),
)
def test_a_blobs_sas_is_signed_as_the_sdk_signs_it(
    name: str, disposition: str | None, snapshot: str | None
) -> None:
    sas = generate_blob_sas(
        "mockacct",
        "box",
        name,
        account_key=KEY,
        permission="r",
        expiry=ENDS,
        content_disposition=disposition,
        encryption_scope="scope",
        ip="127.0.0.0-127.0.0.9",
        protocol="https",
    )
    assert code(sas, name=name) == ""
    assert code(sas, name=f"{name}x") == "AuthenticationFailed"
    assert code(sas, container="other", name=name) == "AuthenticationFailed"
    assert code(sas, name=name, client="127.0.0.10") == "AuthorizationSourceIPMismatch"
    assert code(sas, Need("w", "o"), name=name) == "AuthorizationPermissionMismatch"
    assert code(sas, Need("r", "c", by_service=False)) != ""
    old = generate_blob_sas(
        "mockacct", "box", name, snapshot, account_key=KEY, permission="r", expiry=ENDS
    )
    assert code(old, name=name) == ("" if snapshot is None else "AuthenticationFailed")


@pytest.mark.parametrize(
    ("ends", "fault"),
    [
        ("2099-01-01", ""),
        ("2099-01-01T00:00Z", ""),
        ("2099-01-01T00:00:00Z", ""),
        ("2099-01-01T00:00:00.1234567Z", ""),
        ("2001-01-01", "AuthenticationFailed"),
        ("2099-13-01", "AuthenticationFailed"),
        ("tomorrow", "AuthenticationFailed"),
        ("", "AuthenticationFailed"),
    ],
)
def test_times_are_read_in_every_form_that_the_service_takes(ends: str, fault: str) -> None:
    sas = generate_account_sas(
        "mockacct", KEY, resource_types="o", permission="r", expiry=ends, services="b"
    )
    assert code(sas) == fault
