"""Hostile and broken clients: a clear 4xx, and a server that lives on."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from starlette.responses import PlainTextResponse

from local_runner.mock_server.protocol import Protocol
from tests.mocking import Mock, mock_command, running_mock
from tests.wire import control, job_body, line_to, place_of, put_rows, token

ACCOUNT = "/mockacct.blob.core.local"
MANY = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    home = tmp_path_factory.mktemp("mock")
    with running_mock(home, "--engine", "simulate", "--simulate-seconds", "0") as running:
        yield running


@pytest.fixture(scope="module")
def client(mock: Mock) -> Iterator[httpx.Client]:
    with line_to(mock) as made:
        yield made


@pytest.fixture(autouse=True)
def alive(mock: Mock, client: httpx.Client) -> Iterator[None]:
    """Whatever a test does: the server answers afterwards, and its log has no fault of its own."""
    yield
    assert client.get(place_of(mock)).status_code == 200
    assert "Traceback" not in (mock.home / "server.log").read_text(errors="replace")


def raw(mock: Mock, words: bytes, *, listen: bool = True) -> bytes:
    """What the server answers to raw bytes over TLS; or nothing, as one who hangs up."""
    parts = urlsplit(mock.state.url)
    context = ssl.create_default_context(cafile=mock.state.ca)
    place = (str(parts.hostname), int(parts.port or 0))
    with (
        socket.create_connection(place, timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as line,
    ):
        answer = b""
        try:
            line.sendall(words)
            while listen and (part := line.recv(65536)):
                answer += part
        except OSError:
            pass  # a server that has heard enough hangs up
        return answer


# ------------------------------------------------------------------ names and bodies

NAMES = st.one_of(
    st.text(min_size=1, max_size=80),
    st.sampled_from(
        ["..", ".", "../../etc/passwd", "..%2f..%2fx", "a/../../b", "%00", "%c0%ae%c0%ae", "\\..\\x",
         "con", "x" * 300, "a\nb", "é" * 100, "a?b", "a#b", "~", "-rf", "$(id)", "'; DROP TABLE x;--"]
    ),
)  # fmt: skip


def walk(mock: Mock) -> set[Path]:
    """Every file that there is around the mock's home, but those that it writes to itself."""
    own = {"journal.jsonl", "server.log"}
    return {
        path.relative_to(mock.home.parent)
        for path in mock.home.parent.rglob("*")
        if path.is_file() and path.name not in own and "store.sqlite" not in path.name
        and not {"blobs", "runs"} & set(path.parts)
    }  # fmt: skip


@MANY
@given(name=NAMES, kind=st.sampled_from(["jobs", "data", "models", "serverlessEndpoints", "computes",
                                         "onlineEndpoints", "marketplaceSubscriptions", "blob"]))  # fmt: skip
def test_no_name_reaches_out_or_breaks_a_door(
    mock: Mock, client: httpx.Client, name: str, kind: str
) -> None:
    before = walk(mock)
    quoted = quote(name.encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E")
    if kind == "blob":
        store = client.get(f"{place_of(mock)}/datastores/workspaceblobstore").json()["properties"]
        path, content = f"{ACCOUNT}/{store['containerName']}/{quoted}", b"x"
    else:
        version = "/versions/1" if kind in ("data", "models") else ""
        path, content = (
            f"{place_of(mock)}/{kind}/{quoted}{version}",
            json.dumps(_body(kind)).encode(),
        )
    for method in ("PUT", "GET", "DELETE"):
        answer = client.request(method, path, content=content if method == "PUT" else None)
        assert answer.status_code < 500, (method, path, answer.text)
    assert walk(mock) == before


def _body(kind: str) -> dict[str, Any]:
    uri = "azureml://datastores/workspaceblobstore/paths/rows/rows.jsonl"
    if kind == "jobs":
        return job_body(uri)
    properties: dict[str, dict[str, Any]] = {
        "data": {"dataUri": uri, "dataType": "uri_file"},
        "models": {"modelUri": uri, "modelType": "custom_model"},
        "serverlessEndpoints": {"modelSettings": {"modelId": "azureml://registries/azureml/models/Phi-3-mini-4k-instruct"}},
        "computes": {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_NC24ads_A100_v4"}},
        "onlineEndpoints": {"authMode": "Key"},
    }  # fmt: skip
    return {"properties": properties.get(kind, {}), "location": "eastus2"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)
KEYS = ["jobType", "fineTuningDetails", "displayName", "tags", "properties", "outputs", "experimentName",
        "computeId", "resources", "queueSettings", "isArchived", "identity", "description",
        "notificationSetting"]  # fmt: skip
DETAILS = [
    "modelProvider",
    "taskType",
    "model",
    "trainingData",
    "validationData",
    "hyperParameters",
]


@MANY
@given(key=st.sampled_from([*KEYS, *DETAILS]), value=JSON)
def test_any_value_anywhere_in_a_job_is_taken_or_refused(
    mock: Mock, client: httpx.Client, key: str, value: Any
) -> None:
    body = job_body(put_rows(client, mock))
    place = body["properties"] if key in KEYS else body["properties"]["fineTuningDetails"]
    place[key] = value
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    url = f"{place_of(mock)}/jobs/any"
    answer = client.put(url, content=content)
    assert answer.status_code in (200, 201, 400, 403, 404, 409), answer.text
    if answer.status_code < 400:
        assert client.get(url).status_code == 200
        assert client.get(f"{place_of(mock)}/jobs").status_code == 200
        client.post("/__mock__/reset", headers=control(mock))


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"null", b"\xff\xfe", b'{"properties": 1}', b"[" * 100_000, b"{" * 100_000,
        b'{"properties": {"a": ' * 20_000, b'{"properties": {"x": "\\ud800"}}',
        b'{"properties": {"x": NaN}}', b'{"properties": {"x": 1' + b"0" * 5000 + b"}}",
        gzip.compress(b" " * 50_000_000),
    ],
    ids=["half", "a list", "null", "bad UTF-8", "a number", "deep lists", "deep objects", "deep and half",
         "half a character", "NaN", "a huge number", "a zip bomb"],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["{W}/jobs/bomb", "{W}/data/bomb/versions/1", "{W}/serverlessEndpoints/bomb"]
)
def test_json_that_is_none_or_a_bomb_is_a_400(
    mock: Mock, client: httpx.Client, body: bytes, path: str
) -> None:
    headers = {"Content-Encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
    url = path.replace("{W}", place_of(mock))
    answer = client.put(url, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert client.get(url).status_code == 404


def test_xml_bombs_are_refused(mock: Mock, client: httpx.Client) -> None:
    listed = b"<BlockList><Latest>&a;</Latest></BlockList>"
    bomb = b'<!DOCTYPE x [<!ENTITY b "bbbbbbbbbb"><!ENTITY a "&b;&b;&b;&b;&b;&b;">]>' + listed
    outside = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + listed
    store = client.get(f"{place_of(mock)}/datastores/workspaceblobstore").json()["properties"]
    for body in (bomb, outside, b"<BlockList>" * 50_000, b"\xff\xfe\x00"):
        answer = client.put(f"{ACCOUNT}/{store['containerName']}/bomb?comp=blocklist", content=body)
        assert answer.status_code == 400
        assert b"root:" not in answer.content


def test_a_body_that_is_too_long_is_a_413_however_it_comes(
    mock: Mock, client: httpx.Client
) -> None:
    url = f"{place_of(mock)}/jobs/long"
    assert client.put(url, content=b" " * (5 << 20)).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * (1 << 16)

    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):  # cut off before the end
        assert client.put(url, content=chunks()).status_code == 413


# ------------------------------------------------------------------ the protocol itself


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"h%d: v\r\n" % n for n in range(1000)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nlong: " + b"a" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"OPTIONS / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"GET /a%00b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        (b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-ms-client-request-id: a\x01b\r\n\r\n", 400),
    ],
    ids=["many headers", "a long header", "a long line", "nonsense", "TLS in TLS", "another HTTP",
         "a length below nothing", "two lengths", "no chunk", "an unknown method",
         "a method that is not served", "a zero in the path", "bad UTF-8 in the path",
         "a control character in a header"],
)  # fmt: skip
def test_what_is_no_request_is_a_4xx(mock: Mock, words: bytes, status: int) -> None:
    answer = raw(mock, words)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]


def test_a_client_that_dawdles_is_sent_away_and_others_are_served_meanwhile() -> None:
    class Hasty(Protocol):
        patience = 0.3

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("here")(scope, receive, send)

    door = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", http=Hasty, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    try:
        place = door.getsockname()
        slow = [socket.create_connection(place, timeout=30) for _ in range(50)]
        for line in slow:
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nslow")  # and never goes on
        silent = socket.create_connection(place, timeout=30)
        assert httpx.get(f"http://127.0.0.1:{place[1]}/").text == "here"
        for line in (*slow, silent):
            assert line.recv(100).startswith(b"HTTP/1.1 408 ")
            line.close()
    finally:
        server.should_exit = True
        thread.join()
        door.close()


def test_half_a_request_leaves_nothing_behind(mock: Mock) -> None:
    head = (
        f"PUT {ACCOUNT}/azureml/half HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token(mock)}\r\n"
    )
    raw(
        mock,
        head.encode() + b"Content-Length: 1000000\r\nx-ms-blob-type: BlockBlob\r\n\r\nhalf",
        listen=False,
    )
    with line_to(mock) as client:
        assert client.get(f"{ACCOUNT}/azureml/half").status_code == 404


# ------------------------------------------------------------------ who may come in


def test_every_door_asks_for_credentials(mock: Mock) -> None:
    """Each route of the description, with none and with wrong ones: 401, and never anything else."""
    with line_to(mock) as client:
        document = client.get("/__mock__/openapi.json", headers=control(mock)).json()
        del client.headers["Authorization"]
        asked = 0
        for path, methods in document["paths"].items():
            place = path.format_map(Filled(mock))
            for method, operation in methods.items():
                if "security" not in operation:
                    continue
                asked += 1
                for headers in ({}, {"Authorization": "Bearer x.y.z"}, {"api-key": "x"}):
                    answer = client.request(method, place, headers=headers, content=b"{}")
                    assert answer.status_code == 401, (method, path, answer.status_code)
    assert asked > 80


class Filled(dict[str, str]):
    """A value for every placeholder of a path."""

    def __init__(self, mock: Mock) -> None:
        state = mock.state
        super().__init__(sub=state.subscription_id, group=state.resource_group, ws=state.workspace)

    def __missing__(self, key: str) -> str:
        return "x"


def test_only_loopback_is_served_and_anything_else_is_warned_of(mock: Mock, tmp_path: Path) -> None:
    port = urlsplit(mock.state.url).port
    for address in {
        info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    }:
        if not str(address).startswith("127."):
            with pytest.raises(OSError):  # noqa: PT011 - refused or unreachable, as the machine has it
                socket.create_connection((str(address), port or 0), timeout=2)
    with running_mock(tmp_path, "--engine", "simulate", "--host", "0.0.0.0") as other:  # noqa: S104
        assert (
            "is not loopback: others can reach this mock" in (other.home / "server.log").read_text()
        )


def test_secrets_are_in_no_log(mock: Mock, client: httpx.Client) -> None:
    client.get("/no/such/route?sig=abc", headers={"api-key": "abc"})
    assert mock_command(mock.home, "journal").returncode == 0
    for file in ("server.log", "journal.jsonl"):
        text = (mock.home / file).read_text(errors="replace")
        assert token(mock) not in text
        for secret in json.loads((mock.home / "secrets.json").read_text()).values():
            assert secret not in text


# ------------------------------------------------------------------ the description against the doors


@pytest.fixture
def description(mock: Mock, client: httpx.Client) -> Any:
    document = client.get("/__mock__/openapi.json", headers=control(mock)).json()
    # What resets or restores the server would disturb the others.
    for path in list(document["paths"]):
        if path.startswith("/__mock__"):
            del document["paths"][path]
    return schemathesis.openapi.from_dict(document)


def test_no_request_that_fits_the_description_breaks_a_door(description: Any, mock: Mock) -> None:
    headers, asked = {"Authorization": f"Bearer {token(mock)}"}, set()
    few = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    with requests.Session() as session:

        def ask(case: Any) -> None:
            answer = case.call(
                base_url=mock.state.url, headers=headers, session=session, verify=str(mock.state.ca)
            )
            case.validate_response(answer, checks=[not_a_server_error])
            if answer.status_code >= 400 and "json" in answer.headers.get("content-type", ""):
                assert answer.json()["error"]["message"]
            asked.add((case.method, case.path))

        for found in description.get_all_operations():
            few(given(case=found.ok().as_strategy())(ask))()
    assert len(asked) > 80
