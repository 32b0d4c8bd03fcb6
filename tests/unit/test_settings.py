"""Where targets come from, and what wrong settings say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maas_client.errors import SettingsError
from maas_client.settings import (
    AzureMLSettings,
    FoundrySettings,
    LocalSettings,
    find_target,
    load_targets,
    mock_state,
)

STATE = {
    "pid": 1,
    "url": "https://127.0.0.1:4443",
    "identity_endpoint": "http://127.0.0.1:4444/msi/token",
    "identity_header": "very-secret",
    "ca": "/ca.pem",
    "subscription_id": "s",
    "resource_group": "g",
    "workspace": "w",
    "region": "eastus2",
    "engine": "simulate",
    "as_of": "2025-06-01",
    "base": "",
}


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAAS_MOCK_HOME", str(tmp_path / "mock"))
    for key in (
        "AZURE_SUBSCRIPTION_ID",
        "AZURE_RESOURCE_GROUP",
        "AZUREML_WORKSPACE_NAME",
        "AZURE_OPENAI_ENDPOINT",
        "AZURE_OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
    ):
        monkeypatch.delenv(key, raising=False)


def test_local_is_always_there(tmp_path: Path) -> None:
    assert load_targets(tmp_path) == {"local": LocalSettings()}


def test_a_running_mock_is_a_target_and_its_secret_stays_secret(tmp_path: Path) -> None:
    (tmp_path / "mock").mkdir()
    (tmp_path / "mock" / "server.json").write_text(json.dumps(STATE))
    target = find_target("mock", tmp_path)
    assert isinstance(target, AzureMLSettings)
    assert target.is_mock
    assert "very-secret" not in repr(target) + repr(mock_state())


def test_a_broken_mock_state_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "mock").mkdir()
    (tmp_path / "mock" / "server.json").write_text("{")
    with pytest.raises(SettingsError, match="maas mock stop"):
        load_targets(tmp_path)


def test_azures_own_config_file_makes_a_target(tmp_path: Path) -> None:
    (tmp_path / ".azureml").mkdir()
    config = {"subscription_id": "s", "resource_group": "g", "workspace_name": "w"}
    (tmp_path / ".azureml" / "config.json").write_text(json.dumps(config))
    below = tmp_path / "deep"
    below.mkdir()
    assert find_target("azure", below) == AzureMLSettings("azure", "s", "g", "w")
    (tmp_path / ".azureml" / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="workspace_name"):
        find_target("azure", below)


def test_the_environment_makes_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", "s")
    monkeypatch.setenv("AZURE_RESOURCE_GROUP", "g")
    assert "azure" not in load_targets(tmp_path)
    monkeypatch.setenv("AZUREML_WORKSPACE_NAME", "w")
    assert find_target("azure", tmp_path) == AzureMLSettings("azure", "s", "g", "w")


def test_maas_toml_adds_and_replaces_targets(tmp_path: Path) -> None:
    (tmp_path / "maas.toml").write_text(
        '[targets.local]\nkind = "local"\nruns = "out"\n'
        '[targets.team]\nkind = "azure_ml"\nsubscription_id = "s"\nresource_group = "g"\nworkspace = "w"\n'
    )
    assert find_target("local", tmp_path) == LocalSettings(name="local", runs="out")
    assert find_target("team", tmp_path) == AzureMLSettings("team", "s", "g", "w")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[targets.x]\nkind = "aws"\n', "kind is one of"),
        ('[targets.x]\nkind = "local"\nrnus = "a"\n', "rnus"),
        ('[targets.x]\nkind = "local"\nruns = 5\n', "must be text"),
        ('[targets.x]\nkind = "azure_ml"\nworkspace = "w"\n', "lacks"),
        ("targets = 1\n", "table"),
        ("[targets", "maas.toml"),
    ],
)
def test_a_wrong_maas_toml_is_said(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "maas.toml").write_text(text)
    with pytest.raises(SettingsError, match=word):
        load_targets(tmp_path)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("mock", "maas mock serve"),
        ("mock-foundry", "maas mock serve"),
        ("azure", ".azureml"),
        ("foundry", "AZURE_OPENAI_ENDPOINT"),
        ("x", "maas.toml"),
    ],
)
def test_an_unknown_target_names_the_next_step(tmp_path: Path, name: str, step: str) -> None:
    with pytest.raises(SettingsError, match=step):
        find_target(name, tmp_path)


def test_a_mock_with_the_other_door_is_two_targets(tmp_path: Path) -> None:
    (tmp_path / "mock").mkdir()
    more = {"openai_url": f"{STATE['url']}/v1", "api_key": "k-secret", "openai_account": "acct"}
    (tmp_path / "mock" / "server.json").write_text(json.dumps(STATE | more))
    target = find_target("mock-foundry", tmp_path)
    assert isinstance(target, FoundrySettings)
    assert target.base_url == f"{STATE['url']}/openai/v1"
    assert target.key_header() == {"api-key": "k-secret"}
    assert target.has_arm
    assert "secret" not in repr(target) + repr(mock_state())


AZURE, OPENAI = "https://team.openai.azure.com", "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("given", "base", "header"),
    [
        (
            {"AZURE_OPENAI_ENDPOINT": AZURE, "AZURE_OPENAI_API_KEY": "a", "OPENAI_API_KEY": "o"},
            f"{AZURE}/openai/v1",
            {"api-key": "a"},
        ),
        (
            {"AZURE_OPENAI_ENDPOINT": f"{AZURE}/openai/v1/", "OPENAI_API_KEY": "o"},
            f"{AZURE}/openai/v1",
            {"api-key": "o"},
        ),
        ({"OPENAI_API_KEY": "o"}, OPENAI, {"Authorization": "Bearer o"}),
        (
            {
                "OPENAI_BASE_URL": "http://x/v1",
                "OPENAI_API_KEY": "o",
                "AZURE_OPENAI_API_KEY": "a",
            },
            "http://x/v1",
            {"Authorization": "Bearer o"},
        ),
    ],
)
def test_the_environment_makes_a_foundry_target(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    base: str,
    header: dict[str, str],
) -> None:
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    target = find_target("foundry", tmp_path)
    assert isinstance(target, FoundrySettings)
    assert (target.base_url, target.key_header()) == (base, header)


def test_azures_key_is_shown_to_no_other_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://x/v1")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "a")
    target = find_target("foundry", tmp_path)
    assert isinstance(target, FoundrySettings)
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        target.key()


def test_a_key_comes_out_of_the_environment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "maas.toml"
    file.write_text(
        f'[targets.t]\nkind = "foundry"\nendpoint = "{AZURE}"\napi_key_env = "MY_KEY"\n'
    )
    target = find_target("t", tmp_path)
    assert isinstance(target, FoundrySettings)
    with pytest.raises(SettingsError, match="MY_KEY"):
        target.key()
    monkeypatch.setenv("MY_KEY", "m")
    assert target.key() == "m"
    file.write_text(f'[targets.t]\nkind = "foundry"\nendpoint = "{AZURE}"\napi_key = "m"\n')
    with pytest.raises(SettingsError, match="unknown keys: api_key"):
        find_target("t", tmp_path)
