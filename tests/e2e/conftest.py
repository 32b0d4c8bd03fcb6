"""A mock server of the tests' own, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from maas_client.targets.azure_ml import AzureMLTarget

StartMock = Callable[..., "Iterator[AzureMLTarget]"]


@contextmanager
def mock_server(home: Path, *arguments: str) -> Iterator[AzureMLTarget]:
    """A mock with its state in `home`, and a target that talks to it."""
    from maas_client.settings import AzureMLSettings, find_target

    before = os.environ["MAAS_MOCK_HOME"]
    os.environ["MAAS_MOCK_HOME"] = str(home)
    try:
        subprocess.run(
            [sys.executable, "-m", "local_runner", "mock", "serve", "--detach", *arguments],
            check=True,
            timeout=120,
        )
        settings = find_target("mock")
        assert isinstance(settings, AzureMLSettings)
        target = AzureMLTarget(settings)
        try:
            yield target
        finally:
            target.close()
            subprocess.run(
                [sys.executable, "-m", "local_runner", "mock", "stop"], check=True, timeout=60
            )
    finally:
        os.environ["MAAS_MOCK_HOME"] = before


@pytest.fixture
def in_folder(job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is the job's folder, so that runs/ is too."""
    monkeypatch.chdir(job_folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return job_folder
