"""A folder with a job, to run things in."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def in_folder(job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is the job's folder, so that runs/ is too."""
    monkeypatch.chdir(job_folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return job_folder
