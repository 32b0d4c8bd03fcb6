"""What a job asks of managed compute, judged before it is sent: sizes of machine, cluster, tier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from maas_client.errors import MaasError, NotFoundError
from maas_client.settings import AzureMLSettings
from maas_client.spec.catalog import ModelEntry
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits
from maas_client.spec.sizes import SIZES, Size, in_words, may_tune, needs, unsuitable
from maas_client.targets.azure_ml.child import Child

_SERVERLESS = "serverless"
"""The compute of whoever names none."""


def with_machines(
    limits: Limits, job: FineTuningJob, child: Child, settings: AzureMLSettings
) -> Limits:
    """The limits, with what is to be said of the job's machines. Asks only for a cluster's size."""
    entry = limits.model
    if entry is None or not job.managed_compute:
        return limits
    types = job.resources.instance_types if job.resources else ()
    refusals, warnings = [], []
    if (fault := unsuitable(entry, types)) is not None:
        refusals.append(f"resources.instance_types: {fault}")
    if (name := _cluster(job)) is not None:
        fault, remark = _cluster_words(entry, name, child, settings)
        refusals += [fault] if fault else []
        warnings += [remark] if remark else []
    warnings += _type_warnings(entry, types)
    if not refusals:
        warnings += _price_warnings(entry, types, job)
    return replace(
        limits,
        refusals=(*limits.refusals, *refusals),
        warnings=(*limits.warnings, *warnings),
    )


def _cluster(job: FineTuningJob) -> str | None:
    """The cluster's name: a bare one, `azureml:` before it, or the end of an ARM id."""
    name = (job.compute or "").removeprefix("azureml:").rpartition("/")[2]
    return name if name and name.lower() != _SERVERLESS else None


def _cluster_words(
    entry: ModelEntry, name: str, child: Child, settings: AzureMLSettings
) -> tuple[str, str]:
    """Why the cluster is refused, or what cannot be told of it."""
    path = (
        f"/subscriptions/{settings.subscription_id}/resourceGroups/{settings.resource_group}/providers/"
        f"Microsoft.MachineLearningServices/workspaces/{settings.workspace}/computes/{name}"
        "?api-version=2024-04-01"
    )
    try:
        raw = child.ask("get_json", path=path, login=True)
        size = str(raw["properties"]["properties"]["vmSize"])
    except NotFoundError:
        return (
            f"compute: the workspace has no cluster {name}. Make one of a size that {entry.name} is tuned "
            f"on: az ml compute create --type AmlCompute --name {name} --size {_example(entry)}",
            "",
        )
    except (MaasError, KeyError, TypeError):
        return (
            "",
            f"compute: the size of {name} cannot be looked up; {entry.name} needs {needs(entry)}.",
        )
    known = SIZES.get(size.lower())
    if known is None:
        return (
            "",
            f"compute: {name} has nodes of {size}, which is not known here; the service decides.",
        )
    if not may_tune(entry, known):
        return (
            f"compute: {name} has nodes of {known.name}, with {in_words(known)}; {entry.name} needs "
            f"{needs(entry)}. Allowed: {_allowed(entry)}.",
            "",
        )
    return "", ""


def _type_warnings(entry: ModelEntry, types: Sequence[str]) -> Iterable[str]:
    sizes = {name: SIZES.get(name.lower()) for name in types}
    unknown = [name for name, size in sizes.items() if size is None]
    small = [name for name, size in sizes.items() if size is not None and not may_tune(entry, size)]
    if unknown:
        yield (
            f"resources.instance_types: {', '.join(unknown)} is not known here; the service decides. "
            f"{entry.name} needs {needs(entry)}."
        )
    if small and len(small) < len(types):
        yield (
            f"resources.instance_types: {', '.join(small)} cannot tune {entry.name}, and serves the steps "
            "beside it only."
        )


def _price_warnings(entry: ModelEntry, types: Sequence[str], job: FineTuningJob) -> Iterable[str]:
    size = next((size for size in map(_size, types) if size and may_tune(entry, size)), None)
    cores = f"{size.cpus} vCPUs of {size.name}" if size else "the machine's vCPUs"
    yield (
        f"Managed compute needs quota for {cores} in the workspace's region, and is billed by the hour of "
        "the machine; without quota the job waits. `az ml compute list-usage` shows what there is."
    )
    if job.queue_settings and job.queue_settings.job_tier == "spot":
        yield "queue_settings.job_tier spot: the machine can be taken away, and the job starts again."


def _size(name: str) -> Size | None:
    return SIZES.get(name.lower())


def _allowed(entry: ModelEntry) -> str:
    return ", ".join(entry.finetune_skus) or "any size with a GPU"


def _example(entry: ModelEntry) -> str:
    return entry.finetune_skus[0] if entry.finetune_skus else "Standard_NC24ads_A100_v4"
