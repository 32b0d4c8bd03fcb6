"""A mock server of a test's own, in a process of its own, and the environment that points at it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_client.settings import AzureMLSettings, MockState, find_target, mock_state

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mock:
    """A running mock."""

    home: Path
    state: MockState

    @property
    def settings(self) -> AzureMLSettings:
        """What a target needs to talk to it."""
        os.environ["MAAS_MOCK_HOME"] = str(self.home)
        found = find_target("mock")
        assert isinstance(found, AzureMLSettings)
        return found

    def environment(self, recipe: str = "A") -> dict[str, str]:
        """The environment of a program that is to reach it, as `maas mock env` prints it.

        Recipe C needs the proxy, which is started by its first use and stops with the mock.
        """
        bare = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("AZURE", "ARM_", "CURL"))
        }
        if recipe == "C" and not (self.home / "proxy.json").exists():
            mock_command(self.home, "proxy", "--detach")
        wanted = "C" if recipe == "C" else "A"
        lines = mock_command(self.home, "env", "--recipe", wanted).stdout.splitlines()
        exports = dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)
        given = {key: value.strip("'") for key, value in exports.items()}
        if recipe == "B":
            for key in (
                "ARM_CLOUD_METADATA_URL",
                "AZUREML_CURRENT_CLOUD",
                "REGISTRY_DISCOVERY_ENDPOINT_URL",
            ):
                del given[key]
            given["CLOUD_KEYWORDS"] = json.dumps(self._keywords())
        return bare | given

    def _keywords(self) -> dict[str, Any]:
        words = mock_command(self.home, "env", "--recipe", "B").stdout
        names: dict[str, Any] = {}
        exec(next(line for line in words.splitlines() if line.startswith("cloud =")), names)  # noqa: S102
        return dict(names["cloud"])


def mock_command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`maas mock …` on a home."""
    command = [sys.executable, "-m", "local_runner", "mock", "--home", str(home), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@contextmanager
def running_mock(home: Path, *options: str) -> Iterator[Mock]:
    """A mock that serves for as long as the block lasts."""
    mock = start_mock(home, *options)
    try:
        yield mock
    finally:
        end_mock(home)


def end_mock(home: Path) -> None:
    """Stop the mock of a home, and the engines that would outlive it."""
    mock_command(home, "stop")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            if b"local_runner" in words and f"{home}/runs/".encode() in words:
                os.kill(int(folder.name), signal.SIGKILL)


def start_mock(home: Path, *options: str) -> Mock:
    """Start a mock; whoever asks has to stop it."""
    mock_command(home, "serve", "--detach", *options)
    state = mock_state(home)
    assert state is not None
    return Mock(home, state)
