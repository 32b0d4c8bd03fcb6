"""COVERAGE.md says what the routes say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from local_runner.mock_server.storage.blob_routes import OPERATIONS
from tests.mocking import ROOT

COVERAGE = ROOT / "local_runner" / "mock_server" / "COVERAGE.md"


def describe(*words: str) -> str:
    command = [sys.executable, "-m", "local_runner", "mock", "describe", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(describe("--openapi"))
    return document


def test_coverage_is_made_of_the_routes() -> None:
    made = describe()
    assert made == COVERAGE.read_text(encoding="utf-8"), "maas mock describe > COVERAGE.md"


def test_every_route_of_the_sdks_says_who_sends_it() -> None:
    rows = [
        line.split(" | ") for line in COVERAGE.read_text().splitlines() if line.startswith("| ")
    ]
    routes = [
        row for row in rows if row[0][2:] in ("GET", "PUT", "POST", "PATCH", "DELETE", "HEAD")
    ]
    assert len(routes) > 100
    assert [
        row
        for row in routes
        if row[-1].rstrip(" |") in ("sdk", "recorded")
        and not row[2].strip(" `")
        and len(row) == 5
        and not row[3].startswith("`")
    ] == []


def test_the_description_has_every_route_with_its_parameters_and_credentials(
    openapi: dict[str, Any],
) -> None:
    count = 0
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            count += 1
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path)), path
            if method in ("put", "patch"):
                has_body = "requestBody" in operation
                assert has_body or path.startswith("/__mock__/snapshots"), (method, path)
    assert count > 90


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.call}")
def test_the_table_of_blob_operations_is_what_the_door_answers(
    operation: Any, blob_line: Any
) -> None:
    """None of them is one that the door does not serve (501, or 400 for an unknown comp)."""
    answer = blob_line(operation)
    assert answer.status_code not in (404, 405, 501), answer.text
    assert "is not served" not in answer.text
