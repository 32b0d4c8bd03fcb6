"""The Azure ML target's worker process, seen from the parent: no azure, no network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maas_client.errors import (
    SettingsError,
    TargetError,
)
from maas_client.targets.azure_ml.child import Child, environment
from tests.fake_azure import AZURE, MOCK

ECHO = """
import json, os, sys
settings = json.loads(sys.stdin.readline())
for line in sys.stdin:
    call = json.loads(line)
    if call["verb"] == "die":
        sys.exit("out of memory; sig=abcdef and Bearer hunter2")
    if call["verb"] == "late":
        print(json.dumps({"id": call["id"] - 1, "result": "nobody's"}), flush=True)
    if call["verb"] == "refuse":
        print(json.dumps({"id": call["id"], "error": call["args"]}), flush=True)
    else:
        result = {"pid": os.getpid(), "name": settings["name"], **call["args"]}
        print(json.dumps({"id": call["id"], "result": result}), flush=True)
"""


@pytest.fixture
def echo() -> Iterator[Child]:
    child = Child(AZURE, command=(sys.executable, "-c", ECHO))
    yield child
    child.close()


def test_one_process_answers_every_question(echo: Child) -> None:
    first, second = echo.ask("x", a=1), echo.ask("x", a=2)
    assert (first["a"], second["a"]) == (1, 2)
    assert first["name"] == "azure"
    assert first["pid"] == second["pid"]


def test_closing_ends_the_worker_and_a_new_question_starts_another(echo: Child) -> None:
    first = echo.ask("x")["pid"]
    echo.close()
    assert not Path(f"/proc/{first}").exists()
    assert echo.ask("x")["pid"] != first


def test_a_forgotten_target_leaves_no_worker_behind() -> None:
    child = Child(AZURE, command=(sys.executable, "-c", ECHO))
    pid = child.ask("x")["pid"]
    del child
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_dies_is_explained_without_its_secrets_and_replaced(echo: Child) -> None:
    with pytest.raises(TargetError, match="ended with 1: out of memory") as caught:
        echo.ask("die")
    assert "abcdef" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert echo.ask("x", a=3)["a"] == 3


def test_a_late_answer_to_an_interrupted_question_is_nobodys(echo: Child) -> None:
    assert echo.ask("late", a=1)["a"] == 1


def test_a_worker_without_azure_names_the_extra_to_install() -> None:
    without = (
        "import sys; sys.modules['azure'] = None\n"
        "from maas_client.targets.azure_ml.worker import main; main()"
    )
    child = Child(AZURE, command=(sys.executable, "-c", without))
    with pytest.raises(SettingsError) as caught:
        child.ask("version")
    child.close()
    assert 'pip install "maas-finetune[azure]" -c constraints.txt' in str(caught.value)


def test_azures_worker_has_the_callers_environment() -> None:
    given = {"AZURE_CLIENT_ID": "me", "REQUESTS_CA_BUNDLE": "corporate.pem", "HTTPS_PROXY": "p"}
    made = environment(AZURE, given)
    assert made.items() >= given.items()
    added = {"GIT_DIR", "PYTHONPATH"}
    pace = {f"AZUREML_RUN_POLLING_INTERVAL_{end}" for end in ("MIN", "MAX")}
    assert made.keys() - given.keys() == added | pace


def test_a_mocks_worker_can_reach_nothing_else() -> None:
    given = {
        "AZURE_CLIENT_SECRET": "real",
        "AZUREML_CURRENT_CLOUD": "AzureCloud",
        "ARM_CLOUD_METADATA_URL": "https://elsewhere",
        "CURL_CA_BUNDLE": "x",
        "REQUESTS_CA_BUNDLE": "corporate.pem",
        "IDENTITY_SERVER_THUMBPRINT": "x",
        "NO_PROXY": "intranet",
        "HTTPS_PROXY": "http://proxy",
        "PATH": "/bin",
    }
    made = environment(MOCK, given)
    for name in ("AZURE_CLIENT_SECRET", "AZUREML_CURRENT_CLOUD", "ARM_CLOUD_METADATA_URL"):
        assert name not in made
    assert not {"CURL_CA_BUNDLE", "IDENTITY_SERVER_THUMBPRINT"} & made.keys()
    assert made["REQUESTS_CA_BUNDLE"] == "/ca.pem"
    assert made["IDENTITY_ENDPOINT"] == MOCK.identity_endpoint
    assert made["IDENTITY_HEADER"] == MOCK.identity_header
    assert made["NO_PROXY"] == made["no_proxy"] == "intranet,127.0.0.1,localhost"
    assert made["PATH"] == "/bin"
    assert made["AZUREML_RUN_POLLING_INTERVAL_MAX"] == "5"
