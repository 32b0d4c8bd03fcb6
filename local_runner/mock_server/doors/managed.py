"""Managed compute: what a job may ask for, and what is refused."""

from __future__ import annotations

from local_runner.mock_server.doors.sizes import check_size, check_types
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from maas_client.spec.catalog import ModelEntry
from maas_client.spec.job import FineTuningJob
from maas_client.spec.sizes import SIZES

SERVERLESS = "serverless"
"""The compute of whoever names none."""


def compute_name(given: str | None) -> str:
    """The name in a compute's id: a bare one, `azureml:` before it, or the whole ARM id."""
    return (given or "").removeprefix("azureml:").rpartition("/")[2]


def find_compute(twin: Twin, given: str) -> Body:
    """The workspace's compute.

    Raises:
        ServiceError: there is none of that name.
    """
    name = compute_name(given)
    found = twin.store.get("compute", name.lower())
    if found is None:
        raise ServiceError(
            404,
            "UserError",
            f"The compute {name} was not found in the workspace {twin.site.workspace}.",
            inner="ComputeNotFound",
        )
    return found


def check(twin: Twin, job: FineTuningJob, entry: ModelEntry) -> None:
    """Whether the job's machines are there, and large enough for its model.

    Raises:
        ServiceError: they are not.
    """
    if job.compute and compute_name(job.compute).lower() != SERVERLESS:
        check_size(entry, SIZES[find_compute(twin, job.compute)["size"].lower()])
    if job.resources and job.resources.instance_types:
        check_types(entry, job.resources.instance_types, twin.site.region)
