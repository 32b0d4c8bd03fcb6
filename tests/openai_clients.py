"""The SDKs of OpenAI's doors, unmodified, pointed at a mock; and rows, waiting and time for their tests."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from azure.ai.inference import ChatCompletionsClient
from azure.core.credentials import AzureKeyCredential

from maas_client.spec.rundir import read_json
from tests.mocking import Mock
from tests.wire import control, token

VERSION = "2024-10-21"
MODEL = "phi-4-mini-instruct"
HELLO: list[Any] = [{"role": "user", "content": "Where is the tap?"}]
ENDED = ("succeeded", "failed", "cancelled")


def rows(count: int = 12, *, answer: str = "Left.") -> bytes:
    """A good file of so many examples."""
    lines = (
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"Where is tap {n}?"},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
        for n in range(count)
    )
    return "".join(f"{line}\n" for line in lines).encode()


@dataclass(frozen=True)
class Doors:
    """A mock, and every way into it."""

    mock: Mock

    @property
    def key(self) -> str:
        return str(read_json(self.mock.home / "secrets.json")["api_key"])

    @property
    def pid(self) -> int:
        """The server's, also after it was started again."""
        return int(read_json(self.mock.home / "server.json")["pid"])

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.mock.state.ca)

    @property
    def account(self) -> str:
        """The path of the Cognitive Services account."""
        state = self.mock.state
        return (
            f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
            "/providers/Microsoft.CognitiveServices/accounts/mock-foundry"
        )

    def openai(self, base: str = "/v1", **options: Any) -> openai.OpenAI:
        given = {"api_key": self.key, "max_retries": 0} | options
        http = openai.DefaultHttpxClient(verify=self.context)
        return openai.OpenAI(base_url=f"{self.mock.state.url}{base}", http_client=http, **given)

    def azure(self, **options: Any) -> openai.AzureOpenAI:
        given = {"api_key": self.key, "api_version": VERSION, "max_retries": 0} | options
        http = openai.DefaultHttpxClient(verify=self.context)
        return openai.AzureOpenAI(azure_endpoint=self.mock.state.url, http_client=http, **given)

    def async_openai(self) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(verify=self.context)
        base = f"{self.mock.state.url}/openai/v1"
        return openai.AsyncOpenAI(base_url=base, api_key=self.key, http_client=http)

    def async_azure(self) -> openai.AsyncAzureOpenAI:
        http = openai.DefaultAsyncHttpxClient(verify=self.context)
        return openai.AsyncAzureOpenAI(
            azure_endpoint=self.mock.state.url,
            api_key=self.key,
            api_version=VERSION,
            http_client=http,
        )

    def inference(self, path: str, **options: Any) -> ChatCompletionsClient:
        return ChatCompletionsClient(
            endpoint=f"{self.mock.state.url}{path}",
            credential=AzureKeyCredential(self.key),
            connection_verify=self.mock.state.ca,
            **options,
        )

    def bare(self, **headers: str) -> httpx.Client:
        """A client that no SDK stands before."""
        return httpx.Client(
            base_url=self.mock.state.url, verify=self.context, headers=headers, timeout=60
        )

    def arm(self) -> httpx.Client:
        return self.bare(Authorization=f"Bearer {token(self.mock)}")

    def deploy(self, name: str, model: str) -> dict[str, Any]:
        """A deployment that is ready."""
        body = {
            "sku": {"name": "Standard", "capacity": 1},
            "properties": {"model": {"format": "OpenAI", "name": model, "version": "1"}},
        }
        path = f"{self.account}/deployments/{name}?api-version=2024-10-01"
        with self.arm() as arm:
            answer = arm.put(path, json=body)
            assert answer.status_code in (200, 201), answer.text
            ready: dict[str, Any] = wait(
                lambda: arm.get(path).json(),
                lambda one: one["properties"]["provisioningState"] == "Succeeded",
            )
        return ready

    @contextmanager
    def stopped_clock(self) -> Iterator[None]:
        """What is simulated stands still for as long as the block lasts."""
        with self.bare(**control(self.mock)) as door:
            door.post("/__mock__/time", json={"scale": 0}).raise_for_status()
            try:
                yield
            finally:
                door.post("/__mock__/time", json={"scale": 1}).raise_for_status()

    def advance(self, seconds: float) -> None:
        with self.bare(**control(self.mock)) as door:
            door.post("/__mock__/time", json={"advance": seconds}).raise_for_status()

    @contextmanager
    def controls(self, **settings: Any) -> Iterator[None]:
        """Other settings for as long as the block lasts."""
        with self.bare(**control(self.mock)) as door:
            before = door.get("/__mock__/controls").json()
            door.patch("/__mock__/controls", json=settings).raise_for_status()
            try:
                yield
            finally:
                door.patch("/__mock__/controls", json=before).raise_for_status()

    @contextmanager
    def fault(self, **fault: Any) -> Iterator[None]:
        """Something that goes wrong for as long as the block lasts."""
        with self.controls(faults=[fault]):
            yield


def wait(look: Callable[[], Any], good: Callable[[Any], bool], *, seconds: float = 180) -> Any:
    """What is there once it is good."""
    end = time.monotonic() + seconds
    while not good(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def tuned(client: openai.OpenAI, *, content: bytes = b"", **options: Any) -> Any:
    """A job that is over."""
    file = client.files.create(file=("train.jsonl", content or rows()), purpose="fine-tune")
    given = {"model": MODEL, "training_file": file.id} | options
    job = client.fine_tuning.jobs.create(**given)
    return ended(client, job.id)


def ended(client: openai.OpenAI, job: str) -> Any:
    return wait(lambda: client.fine_tuning.jobs.retrieve(job), lambda one: one.status in ENDED)
