"""What `maas targets check` says of a workspace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from maas_client.errors import (
    AuthError,
    NotFoundError,
    SettingsError,
    UnreachableError,
)
from maas_client.targets.azure_ml import AzureMLTarget, words
from tests.fake_azure import AZURE, Answer, FakeChild


def arm(**found: Any) -> Answer:
    def get_json(path: str, login: bool) -> Any:  # noqa: ARG001, FBT001
        for part, answer in found.items():
            if part in path:
                if isinstance(answer, Exception):
                    raise answer
                return answer
        return {}

    return get_json


def checked(**answers: Any) -> dict[str, tuple[bool, str, str]]:
    usual = {
        "version": "1.35.2",
        "token": None,
        "workspace": {"id": "/w", "location": "eastus2"},
        "list": [],
        "get_json": arm(
            permissions={"value": [{"actions": ["*"], "notActions": []}]},
            providers={"registrationState": "Registered"},
        ),
    }
    findings = AzureMLTarget(AZURE, child=FakeChild(**(usual | answers))).check()
    json.dumps([finding.detail for finding in findings])
    return {f.name: (f.ok, f.detail, f.next_step) for f in findings}


def test_a_workspace_in_order_has_no_fault() -> None:
    found = checked()
    assert list(found)[:6] == ["azure-ai-ml", "reachable", "login", "workspace", "role", "region"]
    assert all(ok for ok, _, _ in found.values())


@pytest.mark.parametrize(
    ("answers", "name", "step"),
    [
        ({"version": SettingsError("no azure", hint=words.INSTALL)}, "azure-ai-ml", "pip install"),
        ({"get_json": UnreachableError("no answer", hint="network?")}, "reachable", "network?"),
        ({"token": AuthError("no token")}, "login", "az login"),
        ({"workspace": NotFoundError("none", status=404)}, "workspace", "Correct workspace"),
        ({"workspace": AuthError("403", status=403)}, "workspace", "AzureML Data Scientist"),
    ],
)
def test_the_first_thing_that_is_missing_ends_the_check(
    answers: Mapping[str, Any], name: str, step: str
) -> None:
    found = checked(**answers)
    assert list(found)[-1] == name
    ok, _, next_step = found[name]
    assert not ok
    assert step in next_step


@pytest.mark.parametrize(
    ("grants", "ok"),
    [
        ([{"actions": ["*"], "notActions": ["Microsoft.Authorization/*/Delete"]}], True),
        ([{"actions": ["Microsoft.MachineLearningServices/workspaces/*/write"]}], True),
        ([{"actions": ["Microsoft.MachineLearningServices/workspaces/*/read"]}], False),
        (
            [
                {
                    "actions": ["*"],
                    "notActions": ["Microsoft.MachineLearningServices/workspaces/jobs/*"],
                }
            ],
            False,
        ),
        ([], False),
    ],
)
def test_the_role_is_read_from_what_it_may_do(grants: Any, ok: bool) -> None:  # noqa: FBT001
    answer = arm(permissions={"value": grants}, providers={"registrationState": "Registered"})
    assert checked(get_json=answer)["role"][0] is ok


def test_where_permissions_are_not_told_listing_jobs_tells() -> None:
    answer = arm(permissions=NotFoundError("x", status=404), providers=AuthError("x", status=403))
    assert checked(get_json=answer)["role"][0]
    assert not checked(get_json=answer, list=AuthError("403", status=403))["role"][0]


def test_a_region_that_tunes_nothing_names_those_that_do() -> None:
    ok, _, step = checked(workspace={"id": "/w", "location": "westeurope"})["region"]
    assert not ok
    assert "eastus2" in step


def test_an_unregistered_provider_says_how_to_register_it() -> None:
    answer = arm(permissions={"value": [{"actions": ["*"]}]}, providers={"registrationState": "No"})
    ok, _, step = checked(get_json=answer)["provider Microsoft.Network"]
    assert not ok
    assert "az provider register --namespace Microsoft.Network" in step
