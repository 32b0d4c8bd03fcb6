"""A crowd at an endpoint of the twin that really answers, through the unmodified openai."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.mocking import Mock, running_mock
from tests.wire import control, line_to, place_of

CROWD = 20


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    home = tmp_path_factory.mktemp("mock")
    with running_mock(home, "--engine", "train", "--base", "tiny") as running:
        yield running


@pytest.fixture(scope="module")
def talker(mock: Mock) -> Iterator[OpenAI]:
    """openai at an endpoint with the base model."""
    model = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct"
    with line_to(mock) as client:
        place = f"{place_of(mock)}/serverlessEndpoints/crowd"
        put = client.put(place, json={"properties": {"modelSettings": {"modelId": model}}})
        assert put.status_code == 201
        key = client.post(f"{place}/listKeys").json()["primaryKey"]
    context = ssl.create_default_context(cafile=mock.state.ca)
    with OpenAI(
        base_url=f"{mock.state.url}/serverless/crowd/v1",
        api_key=key,
        http_client=httpx.Client(verify=context, limits=httpx.Limits(max_connections=2 * CROWD)),
        max_retries=0,
    ) as made:
        yield made


def stream(talker: OpenAI, number: int, **how: Any) -> tuple[str, str | None, list[float]]:
    """What is said, how it ends, and when each piece came."""
    turns: Any = [{"role": "user", "content": f"Where is tap {'?' * number}"}]
    how = {"temperature": 0, "max_tokens": 60, **how}
    text, reason, came = "", None, []
    for chunk in talker.chat.completions.create(model="x", messages=turns, stream=True, **how):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason
        came.append(time.monotonic())
    return text, reason, came


def test_twenty_who_listen_at_once_each_hear_what_they_would_hear_alone(talker: OpenAI) -> None:
    hows = [{"temperature": 1, "seed": n} if n % 3 == 0 else {} for n in range(CROWD)]
    alone = [stream(talker, number, **how)[:2] for number, how in enumerate(hows)]
    together = Barrier(CROWD)

    def listen(number: int) -> tuple[str, str | None, list[float]]:
        together.wait(30)
        return stream(talker, number, **hows[number])

    with ThreadPoolExecutor(CROWD) as pool:
        heard = list(pool.map(listen, range(CROWD)))
    assert [words[:2] for words in heard] == alone
    assert len({text for text, _ in alone}) > CROWD // 2
    # Were they answered one after another, no two would hear words at the same time.
    spans = [(came[1], came[-1]) for *_, came in heard if len(came) > 2]
    assert max(sum(a <= at < b for a, b in spans) for at, _ in spans) >= 3


def test_the_twin_counts_the_answers_that_are_made_and_a_reader_who_leaves_is_not_one(
    mock: Mock, talker: OpenAI
) -> None:
    def answers(client: httpx.Client) -> int:
        return int(client.get("/__mock__/status", headers=control(mock)).json()["answers"])

    turns: Any = [{"role": "user", "content": "Where?"}]
    with line_to(mock) as client:
        for _ in range(3):
            pieces = talker.chat.completions.create(
                model="x", messages=turns, max_tokens=400, stream=True
            )
            next(iter(pieces))
            pieces.close()
        end = time.monotonic() + 30
        while answers(client):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert stream(talker, 3)[1] in ("length", "stop")
