"""HTTP: retries, typed errors, and secrets that stay secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
import stamina

from maas_client.errors import AuthError, NotFoundError, TargetError, UnreachableError
from maas_client.transport import Transport

SECRET = "a-long-secret-key"  # noqa: S105 - a made-up one


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    stamina.set_testing(True, attempts=4)
    yield
    stamina.set_testing(False)


def line_to(handler: Callable[[httpx.Request], httpx.Response]) -> Transport:
    headers = {"Authorization": f"Bearer {SECRET}"}
    return Transport("https://mock.test", headers=headers, transport=httpx.MockTransport(handler))


def test_a_busy_service_is_asked_again() -> None:
    answers = [httpx.Response(429), httpx.Response(503), httpx.Response(200, json={"ok": True})]
    assert line_to(lambda _: answers.pop(0)).post("/x", {}) == {"ok": True}


def test_a_service_that_stays_busy_is_reported() -> None:
    body = {"error": {"message": "slow down", "code": "TooManyRequests"}}
    with pytest.raises(TargetError, match="slow down") as caught:
        line_to(lambda _: httpx.Response(429, json=body)).post("/x", {})
    assert (caught.value.status, caught.value.code) == (429, "TooManyRequests")


def test_an_answer_that_may_have_done_something_is_not_asked_for_twice() -> None:
    calls = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(500, text="boom")

    with pytest.raises(TargetError, match="boom"):
        line_to(handler).post("/x", {})
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthError), (403, AuthError), (404, NotFoundError), (400, TargetError)],
)
def test_each_status_has_its_error_with_the_request_id(
    status: int, kind: type[TargetError]
) -> None:
    response = httpx.Response(
        status, json={"error": {"message": f"no {SECRET}"}}, headers={"x-ms-request-id": "r-1"}
    )
    with pytest.raises(kind) as caught:
        line_to(lambda _: response).post("/x", {})
    assert caught.value.request_id == "r-1"
    assert SECRET not in str(caught.value)


def test_no_answer_is_unreachable() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(UnreachableError, match="refused"):
        line_to(handler).post("/x", {})


def test_a_stream_is_read_event_by_event() -> None:
    pieces = "".join(f"data: {json.dumps({'n': n})}\n\n" for n in range(3)) + "data: [DONE]\n\n"
    line = line_to(lambda _: httpx.Response(200, text=": hello\n\n" + pieces))
    assert [event["n"] for event in line.stream("/x", {})] == [0, 1, 2]


@pytest.mark.parametrize(
    "text",
    [
        'data: {"n": 1}\n\n',
        'data: {"error": {"message": "broke off"}}\n\n',
        "data: {\n\n",
        "data: null\n\n",
    ],
)
def test_a_stream_that_breaks_off_is_no_success(text: str) -> None:
    line = line_to(lambda _: httpx.Response(200, text=text))
    with pytest.raises(TargetError, match=r"broke off|not a JSON object"):
        list(line.stream("/x", {}))


def test_a_refused_stream_says_why() -> None:
    line = line_to(lambda _: httpx.Response(401, json={"error": {"message": "wrong key"}}))
    with pytest.raises(AuthError, match="wrong key"):
        list(line.stream("/x", {}))
