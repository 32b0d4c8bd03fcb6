"""Who storage lets in, and what it says to the others: keys, both kinds of SAS, tokens, and nobody."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import httpx
import pytest
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.storage.blob import (
    BlobClient,
    BlobServiceClient,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)

from tests.blob_clients import (
    ACCOUNT_PATH,
    Bearer,
    account_key,
    account_url,
    bare,
    service,
    soon,
    token,
)
from tests.mocking import Mock, running_mock

BLOB = f"{ACCOUNT_PATH}/box/secret"
HOST = "mockacct.blob.core.windows.net"


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with running_mock(tmp_path_factory.mktemp("mock"), "--engine", "simulate") as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def account(mock: Mock) -> Iterator[BlobServiceClient]:
    with service(mock, account_key(mock)) as made:
        made.create_container("box").upload_blob("secret", b"secret")
        yield made


@pytest.fixture(scope="module")
def nobody(mock: Mock) -> Iterator[httpx.Client]:
    with bare(mock) as client:
        yield client


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.headers.get("x-ms-error-code", "")


def account_sas(mock: Mock, **changed: Any) -> str:
    given: dict[str, Any] = {
        "account_name": "mockacct",
        "account_key": account_key(mock),
        "resource_types": "sco",
        "permission": "rwdlacup",
        "expiry": soon(),
        "services": "b",
    }
    return str(generate_account_sas(**(given | changed)))


def blob_sas(mock: Mock, **changed: Any) -> str:
    given: dict[str, Any] = {
        "account_name": "mockacct",
        "account_key": account_key(mock),
        "container_name": "box",
        "blob_name": "secret",
        "permission": "r",
        "expiry": soon(),
    }
    return str(generate_blob_sas(**(given | changed)))


def test_the_key_opens_the_account_under_every_name_that_the_sdk_makes_of_its_address(
    mock: Mock, account: BlobServiceClient
) -> None:
    key = account_key(mock)
    assert account.account_name == "mockacct.blob.core.local"  # what it makes of a path
    named = service(mock, AzureNamedKeyCredential("mockacct", key))
    odd = named.get_blob_client("box", "Odd näme %?#&+.txt")
    odd.upload_blob(b"x", overwrite=True, metadata={"a_b": "1", "ab": "2", "a1": "3"})
    assert odd.download_blob().readall() == b"x"
    blob = BlobClient.from_blob_url(
        f"{account_url(mock)}/box/secret", credential=key, connection_verify=str(mock.state.ca)
    )
    assert blob.download_blob().readall() == b"secret"


@pytest.mark.parametrize("what", ["another key", "another account", "another header"])
def test_a_key_that_is_not_the_accounts_opens_nothing(mock: Mock, what: str) -> None:
    key, name = account_key(mock), "mockacct"
    options: dict[str, Any] = {}
    if what == "another key":
        key = base64.b64encode(b"x" * 64).decode()
    if what == "another account":
        name = "other"
    if what == "another header":

        def tamper(request: Any) -> None:
            request.http_request.headers["x-ms-meta-a"] = "changed"

        options = {"_additional_pipeline_policies": [Tampering(tamper)]}
    client = service(mock, AzureNamedKeyCredential(name, key), **options)
    with pytest.raises(ClientAuthenticationError) as error:
        client.get_blob_client("box", "secret").download_blob()
    assert (error.value.status_code, "AuthenticationFailed" in str(error.value)) == (403, True)


class Tampering:
    """A policy behind the signature: what somebody on the way could do."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        self._change = change
        self.next: Any = None

    def send(self, request: Any) -> Any:
        self._change(request)
        return self.next.send(request)


def signed(key: str, method: str, path: str, headers: dict[str, str], lines: list[str]) -> str:
    """SharedKey by hand, as documented."""
    fields = ["content-encoding", "content-language", "content-length", "content-md5"]
    fields += ["content-type", "date", "if-modified-since", "if-match", "if-none-match"]
    fields += ["if-unmodified-since", "range"]
    text = [method, *(headers.get(field, "") for field in fields)]
    text += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-ms-")]
    text += [f"/mockacct{path}", *lines]
    mac = hmac.new(base64.b64decode(key), "\n".join(text).encode(), hashlib.sha256).digest()
    return f"SharedKey mockacct:{base64.b64encode(mac).decode()}"


def test_a_signature_made_by_hand_holds_with_the_host_as_the_account(
    mock: Mock, nobody: httpx.Client
) -> None:
    now = dt.datetime.now(tz=dt.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": now, "x-ms-version": "2021-08-06", "range": "bytes=0-2"}
    headers |= {"x-ms-meta-a1": "by its bytes", "x-ms-meta-a_b": "this one is the second"}
    given = signed(account_key(mock), "GET", "/box/secret", headers, ["timeout:30"])
    url = {"url": "/box/secret?timeout=30", "headers": headers | {"host": HOST}}
    url["headers"] |= {"authorization": given}  # type: ignore[operator]
    assert nobody.get(**url).content == b"sec"  # type: ignore[arg-type]
    url["url"] = "/box/secret?timeout=31"
    assert refused(nobody.get(**url)) == (403, "AuthenticationFailed")  # type: ignore[arg-type]


def test_a_request_signed_long_ago_is_refused(mock: Mock, nobody: httpx.Client) -> None:
    then = dt.datetime.now(tz=dt.UTC) - dt.timedelta(minutes=16)
    headers = {"x-ms-date": then.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    headers["authorization"] = signed(account_key(mock), "GET", BLOB, headers, [])
    assert refused(nobody.get(BLOB, headers=headers)) == (403, "AuthenticationFailed")


@pytest.mark.parametrize("form", ["mockacct", "{netloc}/mockacct", "mockacct.blob.core.local"])
def test_an_account_sas_opens_what_it_says(mock: Mock, nobody: httpx.Client, form: str) -> None:
    name = form.format(netloc=mock.state.url.removeprefix("https://"))
    sas = account_sas(mock, account_name=name, encryption_scope="scope", ip="127.0.0.1")
    assert nobody.get(f"{BLOB}?{sas}").content == b"secret"
    client = service(mock, AzureSasCredential(sas))
    assert "secret" in list(client.get_container_client("box").list_blob_names())


ACCOUNT_REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("ended", {"expiry": soon(-1)}, "GET", "AuthenticationFailed"),
    ("not begun", {"start": soon(600), "expiry": soon(700)}, "GET", "AuthenticationFailed"),
    ("no writing", {"permission": "r"}, "PUT", "AuthorizationPermissionMismatch"),
    ("no reading", {"permission": "wdlacup"}, "GET", "AuthorizationPermissionMismatch"),
    ("no deleting", {"permission": "rw"}, "DELETE", "AuthorizationPermissionMismatch"),
    ("only making", {"permission": "c"}, "PUT", "AuthorizationPermissionMismatch"),
    ("containers", {"resource_types": "c"}, "GET", "AuthorizationResourceTypeMismatch"),
    ("files", {"services": "f"}, "GET", "AuthorizationServiceMismatch"),
    ("elsewhere", {"ip": "10.0.0.1-10.0.0.9"}, "GET", "AuthorizationSourceIPMismatch"),
    ("nowhere", {"ip": "fe80::1"}, "GET", "AuthorizationSourceIPMismatch"),
    ("other account", {"account_name": "other"}, "GET", "AuthenticationFailed"),
]


@pytest.mark.parametrize(
    ("changed", "method", "word"),
    [case[1:] for case in ACCOUNT_REFUSED],
    ids=[case[0] for case in ACCOUNT_REFUSED],
)
def test_an_account_sas_opens_nothing_else(
    mock: Mock, nobody: httpx.Client, changed: dict[str, Any], method: str, word: str
) -> None:
    sas = account_sas(mock, **changed)
    answer = nobody.request(method, f"{BLOB}?{sas}", content=b"x" if method == "PUT" else None)
    assert refused(answer) == (403, word)
    assert nobody.get(f"{BLOB}?{account_sas(mock)}").content == b"secret"


def test_who_may_only_make_blobs_makes_new_ones(mock: Mock, nobody: httpx.Client) -> None:
    sas = account_sas(mock, permission="c")
    url = f"{ACCOUNT_PATH}/box/made-once?{sas}"
    assert nobody.put(url, content=b"1").status_code == 201
    assert refused(nobody.put(url, content=b"2")) == (403, "AuthorizationPermissionMismatch")


@pytest.mark.parametrize("part", ["sp", "se", "srt", "ss", "sv", "sig"])
def test_no_part_of_a_sas_can_be_changed(mock: Mock, nobody: httpx.Client, part: str) -> None:
    query = dict(parse_qsl(account_sas(mock, permission="rl")))
    other = {"sp": "rwl", "se": "2099-01-01T00:00:00Z", "srt": "so", "ss": "bf"}
    other |= {"sv": "2021-12-02", "sig": query["sig"][::-1]}
    changed = urlencode(query | {part: other[part]})
    assert refused(nobody.get(f"{BLOB}?{changed}")) == (403, "AuthenticationFailed")
    without = urlencode({key: value for key, value in query.items() if key != part} | {"x": "y"})
    assert nobody.get(f"{BLOB}?{without}").status_code in (401, 403)


def old_account_sas(key: str, version: str) -> str:
    """An account SAS before encryption scopes, by the documentation of that time."""
    query = {"sp": "r", "ss": "b", "srt": "o", "st": "", "se": "2099-01-01", "sip": ""}
    query |= {"spr": "https", "sv": version}
    text = "\n".join(["mockacct", *query.values(), ""])
    mac = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    kept = {name: value for name, value in query.items() if value}
    return urlencode(kept | {"sig": base64.b64encode(mac).decode()})


def test_a_sas_is_read_by_the_rules_of_its_version(mock: Mock, nobody: httpx.Client) -> None:
    key = account_key(mock)
    assert nobody.get(f"{BLOB}?{old_account_sas(key, '2019-12-12')}").content == b"secret"
    new = nobody.get(f"{BLOB}?{old_account_sas(key, '2020-12-06')}")
    assert refused(new) == (403, "AuthenticationFailed")
    ancient = nobody.get(f"{BLOB}?{old_account_sas(key, '2014-02-14')}")
    assert refused(ancient) == (403, "AuthenticationFailed")


def test_a_blobs_sas_opens_that_blob(mock: Mock, nobody: httpx.Client) -> None:
    sas = blob_sas(mock, content_type="text/x-log", content_disposition="inline")
    answer = nobody.get(f"{BLOB}?{sas}")
    assert (answer.content, answer.headers["content-type"]) == (b"secret", "text/x-log")
    assert answer.headers["content-disposition"] == "inline"
    for place in ("other", "secret/deeper"):
        other = nobody.get(f"{ACCOUNT_PATH}/box/{place}?{sas}")
        assert refused(other) == (403, "AuthenticationFailed")
    put = nobody.put(f"{BLOB}?{sas}", content=b"x")
    assert refused(put) == (403, "AuthorizationPermissionMismatch")
    ended = nobody.get(f"{BLOB}?{blob_sas(mock, expiry=soon(-1))}")
    assert refused(ended) == (403, "AuthenticationFailed")


def test_a_containers_sas_opens_its_blobs_and_its_list(mock: Mock, nobody: httpx.Client) -> None:
    sas = generate_container_sas("mockacct", "box", account_key(mock), None, "rl", soon())
    assert nobody.get(f"{BLOB}?{sas}").content == b"secret"
    assert "secret" in nobody.get(f"{ACCOUNT_PATH}/box?restype=container&comp=list&{sas}").text
    made = nobody.put(f"{ACCOUNT_PATH}/box-two?restype=container&{sas}")
    assert made.status_code == 403
    gone = nobody.delete(f"{ACCOUNT_PATH}/box?restype=container&{sas}")
    assert refused(gone) == (403, "AuthorizationFailure")
    for place in ("", "box"):
        listed = nobody.get(f"{ACCOUNT_PATH}/{place}?restype=account&comp=list&{sas}")
        assert b"<Containers>" not in listed.content
    assert nobody.get(f"{ACCOUNT_PATH}/?comp=list&{sas}").status_code == 403


def test_names_are_signed_as_they_are(mock: Mock, account: BlobServiceClient) -> None:
    name = "söme näme %?#&+ //x"
    account.get_blob_client("box", name).upload_blob(b"x", overwrite=True)
    client = service(mock, AzureSasCredential(blob_sas(mock, blob_name=name)))
    assert client.get_blob_client("box", name).download_blob().readall() == b"x"


def test_nobody_is_told_where_to_get_a_token(mock: Mock, nobody: httpx.Client) -> None:
    answer = nobody.get(BLOB)
    assert refused(answer) == (401, "NoAuthenticationInformation")
    assert "resource_id=https://storage.azure.com" in answer.headers["www-authenticate"]
    assert token(mock) not in answer.text
    with pytest.raises(HttpResponseError):
        service(mock, None).get_blob_client("box", "secret").download_blob()


def test_a_token_that_is_none_is_refused(mock: Mock, nobody: httpx.Client) -> None:
    good = token(mock)
    headers = {"Authorization": f"Bearer {good}"}
    assert nobody.get(BLOB, headers=headers).content == b"secret"
    for bad in (good[:-4] + "AAAA", "a.b.c", "none"):
        answer = nobody.get(BLOB, headers={"Authorization": f"Bearer {bad}"})
        assert answer.status_code == 401
    assert Bearer(mock).get_token().token


def list_secrets(mock: Mock, nobody: httpx.Client) -> str:
    state = mock.state
    place = (
        f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
    )
    answer = nobody.post(
        f"{place}/datastores/workspaceblobstore/listSecrets",
        json={"expirableSecret": True, "expireAfterHours": 1},
        headers={"Authorization": f"Bearer {token(mock)}"},
    )
    return str(answer.json()["sasToken"])


LOGS = """
import os, sys, warnings, logging; warnings.simplefilter("ignore"); logging.disable(50)
import requests
from azure.ai.ml import MLClient
from azure.ai.ml._artifacts._artifact_utilities import get_datastore_info, list_logs_in_datastore
from azure.identity import DefaultAzureCredential
place = [os.environ[k] for k in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME")]
client = MLClient(DefaultAzureCredential(), *place)
info = get_datastore_info(client.datastores, "workspaceblobstore")
for name, url in list_logs_in_datastore(info, "run", "logs/azureml/").items():
    print(name, requests.get(url).text)
"""


def test_azure_ai_ml_reads_logs_with_the_signatures_that_it_makes_itself(
    mock: Mock, account: BlobServiceClient
) -> None:
    names = [item.name for item in account.list_containers("azureml-blobstore-")]
    log = account.get_blob_client(names[0], "run/user_logs/std_log.txt")
    log.upload_blob(b"step 1", overwrite=True)
    done = subprocess.run(
        [sys.executable, "-c", LOGS],
        env=mock.environment("A"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "user_logs/std_log.txt step 1" in done.stdout


def test_the_workspaces_sas_is_a_key_to_the_logs_as_azure_ai_ml_uses_it(
    mock: Mock, nobody: httpx.Client
) -> None:
    secret = list_secrets(mock, nobody)
    assert nobody.get(f"{BLOB}{secret}").content == b"secret"
    account = f"{mock.state.url.removeprefix('https://')}/mockacct"

    def get(key: str, **changed: Any) -> tuple[int, str]:
        sas = blob_sas(mock, account_key=key, account_name=account, **changed)
        answer = nobody.get(f"{BLOB}?{sas}")
        return answer.status_code, answer.headers.get("x-ms-error-code", "")

    assert get(secret)[0] == 200
    assert get(secret, blob_name="other") == (403, "AuthenticationFailed")
    assert get(secret, permission="rw") == (403, "AuthenticationFailed")
    assert get(secret, expiry=soon(90)) == (403, "AuthenticationFailed")  # longer than the key
    # What anybody can write down is no key: the signature is what counts.
    query = dict(parse_qsl(secret.lstrip("?")))
    forged = "?" + urlencode(query | {"sig": base64.b64encode(b"x" * 32).decode()})
    for key in (forged, quote("sv=2022-11-02"), account_sas(mock)):
        try:
            assert get(key) == (403, "AuthenticationFailed")
        except ValueError:  # not even base64
            continue
