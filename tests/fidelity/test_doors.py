"""The doors themselves: who comes in, what garbage does, certificates, secrets and homes."""

from __future__ import annotations

import datetime as dt
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local_runner.mock_server import tls
from maas_client.spec.rundir import read_json
from tests.mocking import Mock, mock_command, running_mock


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with running_mock(tmp_path_factory.mktemp("mock"), "--engine", "simulate") as running:
        yield running


@pytest.fixture(scope="module")
def client(mock: Mock) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=mock.state.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    token = httpx.get(
        f"{mock.state.identity_endpoint}?resource=x",
        headers={"X-IDENTITY-HEADER": mock.state.identity_header},
    ).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=mock.state.url, verify=context, headers=headers, timeout=30) as made:
        yield made


@pytest.fixture(scope="module")
def place(mock: Mock) -> str:
    state = mock.state
    return (
        f"/subscriptions/{state.subscription_id}/resourceGroups/{state.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{state.workspace}"
    )


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "tampered"])
def test_a_request_without_a_good_token_is_401_with_a_challenge(
    client: httpx.Client, place: str, token: str
) -> None:
    good = client.headers["authorization"].removeprefix("Bearer ")
    given = {"tampered": good[:-4] + "AAAA"}.get(token, token)
    answer = client.get(place, headers={"Authorization": f"Bearer {given}".strip()})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"properties": 1}', b"\xff", b"[" * 100_000])
def test_garbage_is_a_400_and_the_server_lives_on(
    client: httpx.Client, place: str, body: bytes
) -> None:
    answer = client.put(
        f"{place}/jobs/x", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert client.get(place).status_code == 200


def test_a_body_without_end_is_cut_off(client: httpx.Client, place: str) -> None:
    answer = client.put(f"{place}/jobs/x", content=b" " * (5 * 1024 * 1024))
    assert answer.status_code == 413


def test_paths_do_not_mind_case_double_slashes_or_versions(
    client: httpx.Client, place: str
) -> None:
    url = f"{client.base_url}/{place.upper().replace('/PROVIDERS', '//PROVIDERS')}"
    assert client.get(f"{url}?api-version=2099-01-01").status_code == 200


def test_the_certificates_pass_strict_verification_and_are_renewed_in_time(tmp_path: Path) -> None:
    made = tls.ensure(tmp_path)
    assert made.key.stat().st_mode & 0o077 == 0
    kept = tls.ensure(tmp_path)
    assert kept.chain.read_bytes() == made.chain.read_bytes()
    before = made.chain.read_bytes(), made.ca.read_bytes()
    later = dt.datetime.now(tz=dt.UTC) + dt.timedelta(days=380)
    tls.ensure(tmp_path, now=later)
    assert (made.chain.read_bytes() != before[0], made.ca.read_bytes() == before[1]) == (True, True)


def test_status_and_reset_have_a_door_of_their_own(tmp_path: Path) -> None:
    with running_mock(tmp_path, "--engine", "simulate") as other:
        status = json.loads(mock_command(other.home, "status", "--json").stdout)
        assert (status["engine"], status["as_of"], status["jobs"]) == ("simulate", "2025-06-01", {})
        context = ssl.create_default_context(cafile=other.state.ca)
        with httpx.Client(base_url=other.state.url, verify=context) as line:
            assert line.post("/__mock__/reset").status_code == 401
        assert "forgotten" in mock_command(other.home, "reset").stdout


def test_secrets_are_in_no_log(mock: Mock, client: httpx.Client) -> None:
    client.get("/no/such/route")
    log = (mock.home / "server.log").read_text()
    for secret in read_json(mock.home / "secrets.json").values():
        assert secret not in log
    assert (mock.home / "secrets.json").stat().st_mode & 0o077 == 0
    assert (mock.home / "server.json").stat().st_mode & 0o077 == 0


def test_a_base_that_can_be_none_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no folder and no hub id"):
        mock_command(tmp_path, "serve", "--base", "nonsense")


def test_two_servers_do_not_share_a_home(mock: Mock) -> None:
    with pytest.raises(AssertionError, match="already serves"):
        mock_command(mock.home, "serve", "--detach")
