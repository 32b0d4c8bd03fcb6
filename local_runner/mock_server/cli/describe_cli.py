"""`maas mock describe`: what is covered, and from which source; or the same as OpenAPI."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from local_runner.mock_server import credentials
from local_runner.mock_server.control.describe import coverage, openapi
from local_runner.mock_server.control.journal import Journal
from local_runner.mock_server.doors.table import make_router
from local_runner.mock_server.engine import Engine
from local_runner.mock_server.server import Options, make_twin
from local_runner.mock_server.twin import Site
from local_runner.mock_server.worker import Worker


def add_verb(verbs: Any) -> None:
    """Add the verb to those of `maas mock`."""
    made = verbs.add_parser("describe", help="what is covered, and from which source; or OpenAPI")
    made.set_defaults(run=_describe)
    made.add_argument("--openapi", action="store_true")


def _describe(options: argparse.Namespace) -> int:
    """COVERAGE.md or OpenAPI; no mock needs to run."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        serving = Options(home, Engine("simulate"), lambda url: Site(url, home))
        secrets = credentials.ensure(home / "secrets.json")
        twin = make_twin(serving, "https://127.0.0.1:8443", secrets, stack)
        journal = Journal(home / "journal.jsonl", [])
        stack.callback(journal.close)
        routes = make_router(twin, Worker(twin), journal).routes
        document = (
            json.dumps(openapi(routes, twin.site), indent=2)
            if options.openapi
            else coverage(routes)
        )
    print(document)
    return 0
