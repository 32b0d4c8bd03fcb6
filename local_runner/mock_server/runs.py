"""Where a job's files are: its run directory on this disk, its artifacts in the workspace's storage."""

from __future__ import annotations

from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from maas_client.spec.rundir import RunDir


def run_of(twin: Twin, job: Body) -> RunDir:
    """The job's run directory."""
    return RunDir(twin.site.home / "runs" / str(job["run"]))


def log_name(job: str) -> str:
    """The blob that holds what the job has said."""
    return f"{artifacts(job)}user_logs/std_log.txt"


def artifacts(job: str) -> str:
    """The prefix of the job's artifacts in the artifact store."""
    return f"ExperimentRun/dcid.{job}/"
