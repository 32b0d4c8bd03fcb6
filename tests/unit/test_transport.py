"""HTTP: retries, typed errors, and secrets that stay secret."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import stamina

from maas_client.errors import (
    AmbiguousError,
    AuthError,
    ConflictError,
    NotFoundError,
    TargetError,
    UnreachableError,
)
from maas_client.transport import Slice, Transport, redact

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
    [
        (401, AuthError),
        (403, AuthError),
        (404, NotFoundError),
        (409, ConflictError),
        (400, TargetError),
    ],
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


@pytest.mark.parametrize("verb", ["get", "delete", "read", "post", "stream"])
def test_a_redirect_is_no_success(verb: str) -> None:
    """It is not followed with the key, and its page is not what was asked for."""
    moved = {"location": "https://elsewhere.test/login"}
    line = line_to(lambda _: httpx.Response(302, headers=moved, text="<html>log in</html>"))

    def ask() -> None:
        body = ({},) if verb in ("post", "stream") else ()
        list(getattr(line, verb)("/files/x", *body) or ())

    with pytest.raises(TargetError) as told:
        ask()
    assert told.value.status == 302


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


@pytest.mark.parametrize("verb", ["get", "delete"])
def test_what_can_be_asked_twice_outlives_a_bad_moment(verb: str) -> None:
    moments = [httpx.ReadError("cut"), httpx.ConnectError("down"), httpx.Response(502)]

    def handler(_: httpx.Request) -> httpx.Response:
        if not moments:
            return httpx.Response(200, json={"ok": True})
        moment = moments.pop(0)
        if isinstance(moment, Exception):
            raise moment
        return moment

    getattr(line_to(handler), verb)("/x")
    assert not moments


def test_there_is_an_end_to_asking_again() -> None:
    calls: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        raise httpx.ReadError("cut", request=request)

    with pytest.raises(UnreachableError, match="cut"):
        line_to(handler).get("/x")
    assert len(calls) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422])
def test_a_clear_no_is_taken_for_one(status: int) -> None:
    calls: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(status)

    with pytest.raises(TargetError):
        line_to(handler).get("/x")
    assert len(calls) == 1


def test_a_service_can_say_that_asking_again_is_of_no_use() -> None:
    calls: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(503, headers={"x-should-retry": "false"})

    with pytest.raises(TargetError):
        line_to(handler).get("/x")
    assert len(calls) == 1


def test_what_would_cost_twice_is_sent_once() -> None:
    calls: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(503, json={"error": {"message": "busy"}})

    with pytest.raises(AmbiguousError, match="busy"):
        line_to(handler).post("/x", {}, again="never")
    assert len(calls) == 1


def _pauses(monkeypatch: pytest.MonkeyPatch, *headers: dict[str, str]) -> list[float]:
    """How long is waited between answers with those headers."""
    stamina.set_testing(False)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    answers = [httpx.Response(429, headers=entry) for entry in headers]
    answers.append(httpx.Response(200, json={}))
    line_to(lambda _: answers.pop(0)).get("/x")
    return pauses


def test_retry_after_is_obeyed_with_a_little_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = email.utils.formatdate(time.time() + 20, usegmt=True)
    one, two, three = _pauses(
        monkeypatch, {"retry-after": "7"}, {"retry-after-ms": "1500"}, {"retry-after": soon}
    )
    assert 7 <= one < 7.3
    assert 1.5 <= two < 1.8
    assert 17 < three < 20.3


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [_pauses(monkeypatch, {}, {}, {}) for _ in range(5)]
    assert len({tuple(run) for run in runs}) == 5
    assert all(0.25 <= run[0] <= 0.75 for run in runs)
    assert all(1.0 <= run[2] <= 1.5 for run in runs)


def test_nobody_waits_longer_than_the_budget() -> None:
    calls: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(429, headers={"retry-after": "3600"})

    with pytest.raises(TargetError):
        line_to(handler).get("/x")
    assert len(calls) == 1


def test_a_form_is_read_anew_for_each_try_and_told_once(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(b"0123456789")
    told: list[int] = []
    bodies: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        assert len(bodies[-1]) == int(request.headers["content-length"])
        return httpx.Response(500 if len(bodies) == 1 else 200, json={})

    part = Slice("data", file, 'a"b.jsonl', 2, 5, told.append)
    line_to(handler).upload("/x", {"purpose": "p"}, part)
    assert told == [5, -5, 5]
    assert bodies[0] == bodies[1]
    assert b"23456" in bodies[0]
    assert b"234567" not in bodies[0]
    assert b'filename="a_b.jsonl"' in bodies[0]


@pytest.mark.parametrize(
    "text",
    [
        "Bearer abcdefghijkl",
        "api-key: abcdefghijkl",
        "?sig=abcdefghijkl&x=1",
        "sk-abcdefghijkl",
        "eyJabcdefghijkl.abcdefghijkl.abcdefghijkl",
    ],
)
def test_what_looks_like_a_secret_is_not_repeated(text: str) -> None:
    assert "abcdefghijkl" not in redact(f"so it was {text} that was wrong")


def test_another_secret_in_an_answer_is_not_repeated() -> None:
    body = {"error": {"message": "the key sk-abcdefghijkl is old", "code": "bad"}}
    with pytest.raises(TargetError, match=r"the key \*\*\* is old"):
        line_to(lambda _: httpx.Response(400, json=body)).get("/x")
