"""A running mock as the command line sees it: where it is, and its control door."""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from local_runner.mock_server.credentials import ensure as secrets_of
from local_runner.mock_server.server import state_of
from maas_client.errors import MaasError


class Line:
    """The control door of the mock that serves from a home.

    Args:
        home: the mock's.

    Raises:
        MaasError: none serves from there.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        state = state_of(self.home)
        if state is None:
            raise MaasError(
                f"no mock serves from {home}", hint="`maas mock serve --detach` starts one."
            )
        self.state = state
        self.context = (
            ssl.create_default_context(cafile=state["ca"])
            if state["url"].startswith("https")
            else None
        )

    @property
    def secret(self) -> str:
        """What opens the control door."""
        return secrets_of(self.home / "secrets.json").control

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request to the control door and read the JSON of its answer.

        Raises:
            MaasError: the mock refuses, with its words.
        """
        return json.loads(self.ask_raw(method, path, body) or b"null")

    def ask_raw(self, method: str, path: str, body: Any = None) -> bytes:
        """As `ask`, the answer as it came."""
        request = urllib.request.Request(  # noqa: S310 - our own address
            self.state["url"] + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=120) as answer:  # noqa: S310
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise MaasError(_words(error)) from error

    def answers(self) -> bool:
        """Whether the mock answers."""
        try:
            self.ask_raw("GET", "/__mock__/time")  # no fault that was asked for gets in its way
        except (MaasError, OSError):
            return False
        return True


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Whether a process of ours has ended within the time."""
    end = time.monotonic() + seconds
    while is_there(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def is_there(pid: int) -> bool:
    """Whether the process has not ended; one that nobody has waited for yet has."""
    try:
        return b"local_runner" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        pass
    if sys.platform == "linux":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _words(error: urllib.error.HTTPError) -> str:
    try:
        found = json.loads(error.read())["error"]
    except (ValueError, KeyError, TypeError):
        return f"the mock answered {error.code}"
    return str(found.get("message", f"the mock answered {error.code}"))
