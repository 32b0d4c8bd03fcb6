"""Public names: a program that knows nothing of the mock reaches it, and no other host is reached at all."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from maas_client.spec.rundir import read_json
from tests.conftest import ROW
from tests.fidelity.notebook_run import run_notebook
from tests.mocking import Mock, mock_command, running_mock

QUICK = ("--engine", "simulate", "--simulate-seconds", "0.3")


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with running_mock(tmp_path_factory.mktemp("mock"), *QUICK) as running:
        mock_command(running.home, "proxy", "--detach")
        yield running


def proxy_place(mock: Mock) -> tuple[str, int]:
    parts = urlsplit(read_json(mock.home / "proxy.json")["url"])
    return str(parts.hostname), int(parts.port or 0)


def say(mock: Mock, words: bytes) -> bytes:
    """What the proxy answers to raw bytes."""
    with socket.create_connection(proxy_place(mock), timeout=30) as line:
        line.sendall(words)
        return line.recv(65536)


def test_the_whole_notebook_runs_under_public_names(mock: Mock, tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(ROW.replace("tap", f"tap {n}") + "\n" for n in range(10)))
    environment = mock.environment("C")
    assert environment["HTTPS_PROXY"].startswith("http://127.0.0.1:")
    assert not any(key.startswith(("ARM_", "AZUREML_CURRENT")) for key in environment)
    seen = run_notebook(environment, rows, tmp_path)
    assert seen["done"] == ["JobStatus.COMPLETED", True]
    assert seen["uri"] == "https://my-endpoint.eastus2.models.ai.azure.com"
    assert seen["chat"]["bare key"][0] == 200
    hosts = {
        json.loads(line)["host"] for line in (mock.home / "journal.jsonl").read_text().splitlines()
    }
    assert {"management.azure.com", "mockacct.blob.core.windows.net", "eastus.api.azureml.ms",
            "my-endpoint.eastus2.models.ai.azure.com"} <= hosts  # fmt: skip


@pytest.mark.parametrize(
    "target",
    [
        b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
        b"CONNECT management.azure.com:22 HTTP/1.1\r\n\r\n",
        b"CONNECT management.azure.com.evil.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT other.blob.core.windows.net:443 HTTP/1.1\r\n\r\n",
        b"CONNECT x.westus.models.ai.azure.com:443 HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"GET https://management.azure.com/ HTTP/1.1\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
    ],
)
def test_no_other_host_is_reached(mock: Mock, target: bytes) -> None:
    assert say(mock, target).startswith(b"HTTP/1.1 403 ")


def test_a_head_without_end_is_dropped_and_the_proxy_lives_on(mock: Mock) -> None:
    with socket.create_connection(proxy_place(mock), timeout=30) as line:
        try:
            for _ in range(64):
                line.sendall(b"x" * 4096)
            assert line.recv(10) == b""
        except ConnectionError:
            pass
    assert say(mock, b"CONNECT management.azure.com:443 HTTP/1.1\r\n\r\n").startswith(
        b"HTTP/1.1 200 "
    )


def test_public_names_have_a_certificate_that_verifies(mock: Mock) -> None:
    context = ssl.create_default_context(cafile=mock.state.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in (
        "management.azure.com",
        "login.microsoftonline.com",
        "x.eastus2.models.ai.azure.com",
    ):
        line = http.client.HTTPSConnection(*proxy_place(mock), context=context, timeout=30)
        line.set_tunnel(host, 443)
        line.request("GET", "/subscriptions")
        assert line.getresponse().status in (401, 404)  # the twin's answer: it wants a token
        line.close()


def test_a_host_of_the_cloud_that_is_not_the_twins_is_not_served(mock: Mock) -> None:
    parts = urlsplit(mock.state.url)
    context = ssl.create_default_context(cafile=mock.state.ca)
    line = http.client.HTTPSConnection(str(parts.hostname), parts.port, context=context, timeout=30)
    line.request("GET", "/", headers={"Host": "graph.windows.net"})
    answer = line.getresponse()
    assert answer.status == 404
    assert b"graph.windows.net is not one of the mock's names" in answer.read()
    line.close()


def test_the_proxy_is_off_unless_asked_for(tmp_path: Path) -> None:
    with running_mock(tmp_path, *QUICK) as mock:
        words = ("mock", "--home", str(mock.home), "env", "--recipe", "C")
        done = subprocess.run([sys.executable, "-m", "local_runner", *words],
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 1
        assert "maas mock proxy" in done.stderr
        assert not (mock.home / "proxy.json").exists()


def test_a_mock_without_tls_has_no_proxy(tmp_path: Path) -> None:
    with (
        running_mock(tmp_path, *QUICK, "--plain") as mock,
        pytest.raises(AssertionError, match="without --plain"),
    ):
        mock_command(mock.home, "proxy", "--detach")


def test_a_mock_that_is_gone_is_said_and_one_that_comes_back_is_found(tmp_path: Path) -> None:
    with running_mock(tmp_path, *QUICK) as mock:
        mock_command(mock.home, "proxy", "--detach")
        (tmp_path / "server.json").rename(tmp_path / "aside")
        ask = b"CONNECT management.azure.com:443 HTTP/1.1\r\n\r\n"
        assert say(mock, ask).startswith(b"HTTP/1.1 502 ")
        (tmp_path / "aside").rename(tmp_path / "server.json")
        assert say(mock, ask).startswith(b"HTTP/1.1 200 ")
        state = read_json(tmp_path / "server.json")
        os.kill(state["pid"], signal.SIGKILL)  # it leaves its word that it serves
        end = time.monotonic() + 10  # its door closes a moment after
        while say(mock, ask).startswith(b"HTTP/1.1 200 "):
            assert time.monotonic() < end
        assert say(mock, ask).startswith(b"HTTP/1.1 502 ")
        mock_command(mock.home, "serve", "--detach", *QUICK)
        assert say(mock, ask).startswith(b"HTTP/1.1 200 ")
    assert not (tmp_path / "proxy.json").exists()  # `stop` stopped it, too
