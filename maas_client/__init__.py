"""One job file, three places: Azure ML's hosted service, an offline twin of it, and this machine.

import maas_client as maas

target = maas.open_target("mock")
plan = maas.plan_job("job.yaml", target)
job = maas.submit(plan, target)
for event in job.follow():
    print(event.message)
run = job.download("out")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maas_client.errors import MaasError
    from maas_client.evaluation import evaluate
    from maas_client.flow import (
        collect,
        deploy,
        hosting,
        open_chat,
        open_target,
        plan_job,
        run,
        submit,
    )
    from maas_client.handle import JobHandle
    from maas_client.jobs import Endpoint, Event, Job, JobStatus
    from maas_client.plan import Plan
    from maas_client.serving import Chat
    from maas_client.spec.dataset import DatasetReport, check
    from maas_client.spec.job import FineTuningJob
    from maas_client.spec.loading import dump_job, load_job
    from maas_client.spec.rundir import RunDir
    from maas_client.targets.base import Target
    from maas_client.verifying import verify

# Loaded when first used: a program that only reads a job file does not wait for the rest.
_HOME = {
    "MaasError": "errors",
    "Endpoint": "jobs",
    "Event": "jobs",
    "Job": "jobs",
    "JobStatus": "jobs",
    "FineTuningJob": "spec.job",
    "load_job": "spec.loading",
    "dump_job": "spec.loading",
    "DatasetReport": "spec.dataset",
    "check": "spec.dataset",
    "RunDir": "spec.rundir",
    "Chat": "serving",
    "Target": "targets.base",
    "Plan": "plan",
    "JobHandle": "handle",
    "open_target": "flow",
    "plan_job": "flow",
    "submit": "flow",
    "run": "flow",
    "collect": "flow",
    "deploy": "flow",
    "hosting": "flow",
    "open_chat": "flow",
    "open_local_chat": "flow",
    "verify": "verifying",
    "evaluate": "evaluation",
}

__all__ = [
    "Chat",
    "DatasetReport",
    "Endpoint",
    "Event",
    "FineTuningJob",
    "Job",
    "JobHandle",
    "JobStatus",
    "MaasError",
    "Plan",
    "RunDir",
    "Target",
    "check",
    "collect",
    "deploy",
    "dump_job",
    "evaluate",
    "hosting",
    "load_job",
    "open_chat",
    "open_local_chat",
    "open_target",
    "plan_job",
    "run",
    "submit",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'maas_client' has no attribute {name!r}")
    return getattr(import_module(f"maas_client.{_HOME[name]}"), name)
