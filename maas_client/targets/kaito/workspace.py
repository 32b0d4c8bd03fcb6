"""A plan as what Kaito reads: a Workspace, its ConfigMap, and another with small rows. Pure but for those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from maas_client.errors import PlanError, Problem
from maas_client.plan import Plan
from maas_client.settings import KaitoSettings
from maas_client.spec.catalog import find_model
from maas_client.targets.kaito import rules, schema
from maas_client.targets.kaito.config import FILE, dump, method, training_config
from maas_client.targets.kaito.presets import preset
from maas_client.targets.kaito.sayable import instance_type, selector

Object = dict[str, Any]

MANAGER = "maas-finetune"
"""Who owns the fields that we apply; and the prefix of our annotations."""
KEY = f"{MANAGER}/key"
MODEL = f"{MANAGER}/model"
TITLE = f"{MANAGER}/display-name"
OURS = {"app.kubernetes.io/managed-by": MANAGER}

_ROWS = "train.jsonl"


@dataclass(frozen=True, slots=True)
class Manifests:
    """What is applied, in this order."""

    config_maps: tuple[Object, ...]
    """Kaito's training_config.yaml; and the rows, where they travel with it."""
    workspace: Object

    def to_yaml(self) -> str:
        documents = (*self.config_maps, self.workspace)
        return "---\n".join(dump(document) for document in documents)


def manifests(
    plan: Plan, settings: KaitoSettings, *, structure: schema.Schema = schema.WORKSPACE
) -> Manifests:
    """The objects of a job, checked against the structure and against what the webhook refuses.

    Args:
        plan: what the target has agreed to; its job has a name.
        settings: the cluster, and where rows and adapter are.
        structure: the schema of the cluster's own CRD, where it is known.

    Raises:
        PlanError: Kaito would refuse it, with every reason.
    """
    name = plan.job.name or ""
    source, dataset, rows = _input(plan, settings, name)
    config = _config_map(
        plan, settings, f"{name}-config", {FILE: dump(training_config(plan, dataset=dataset))}
    )
    workspace = _workspace(plan, settings, source, config["metadata"]["name"])
    found = [*schema.faults(workspace, structure), *rules.faults(workspace, config)]
    if found:
        raise PlanError(
            f"{settings.name} would refuse the Workspace",
            problems=tuple(Problem(fault, code="workspace") for fault in found),
        )
    return Manifests((config, *rows), workspace)


def record(plan: Plan, settings: KaitoSettings, job_file: str, plan_json: str) -> Object:
    """What stays of a job when its Workspace is gone. Making it is what claims the job's name."""
    files = {"job.yaml": job_file, "plan.json": plan_json}
    return _config_map(plan, settings, record_name(plan.job.name or ""), files)


def record_name(job_id: str) -> str:
    return f"{job_id}-record"


def owned(made: Mapping[str, Any], owner: Mapping[str, Any]) -> Object:
    """The same object, which goes when its owner does."""
    metadata = owner["metadata"]
    reference = {
        "apiVersion": schema.API_VERSION,
        "kind": schema.KIND,
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    return {**made, "metadata": {**made["metadata"], "ownerReferences": [reference]}}


def output(workspace: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Where a Workspace puts the adapter: the image, and the secret that opens its registry."""
    told = (workspace.get("tuning") or {}).get("output") or {}
    return told.get("image"), told.get("imagePushSecret")


def _workspace(plan: Plan, settings: KaitoSettings, source: Object, config: str) -> Object:
    entry = find_model(plan.job.model.asset_name)
    size = instance_type(plan.job, settings)
    goes_to: Object = (
        {
            "image": f"{settings.output_image}:{plan.job.name}",
            "imagePushSecret": settings.output_secret,
        }
        if settings.output_image
        else {"volumeSource": {"persistentVolumeClaim": {"claimName": settings.output_claim}}}
    )
    return {
        "apiVersion": schema.API_VERSION,
        "kind": schema.KIND,
        "metadata": _metadata(plan, settings, plan.job.name or ""),
        "resource": {
            **({"instanceType": size} if size else {}),
            "labelSelector": {"matchLabels": selector(settings)},
        },
        "tuning": {
            "preset": {"name": (preset(entry) if entry else None) or ""},
            "method": method(plan.values),
            "config": config,
            "input": source,
            "output": goes_to,
        },
    }


def _input(
    plan: Plan, settings: KaitoSettings, name: str
) -> tuple[Object, str | None, tuple[Object, ...]]:
    """Where the rows come from; the file's path below /mnt, where it is known; and the rows."""
    data = plan.training
    if data.report is None:
        file = urlsplit(data.path).path.rpartition("/")[2]
        return {"name": "rows", "urls": [data.path]}, f"data/{file}", ()
    if settings.data_image:
        secrets = {"imagePullSecrets": [settings.data_secret]} if settings.data_secret else {}
        # The folder below the mount differs between Kaito's versions; its program looks for the file.
        return {"name": "rows", "image": settings.data_image, **secrets}, None, ()
    if settings.data_claim:
        claim = {"persistentVolumeClaim": {"claimName": settings.data_claim}}
        return {"name": "rows", "volumeSource": claim}, f"data/{Path(data.path).name}", ()
    text = Path(data.path).read_text(encoding="utf-8-sig")
    rows = _config_map(plan, settings, f"{name}-rows", {_ROWS: text})
    volume = {"configMap": {"name": rows["metadata"]["name"]}}
    return {"name": "rows", "volumeSource": volume}, f"data/{_ROWS}", (rows,)


def _config_map(plan: Plan, settings: KaitoSettings, name: str, data: Mapping[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan, settings, name),
        "data": dict(data),
    }


def _metadata(plan: Plan, settings: KaitoSettings, name: str) -> Object:
    told = {KEY: plan.key, MODEL: plan.job.model.asset_name, TITLE: plan.job.display_name}
    return {
        "name": name,
        "namespace": settings.namespace,
        "labels": OURS,
        "annotations": {key: text for key, text in told.items() if text},
    }


def read_yaml(text: str) -> list[Object]:
    """The objects of a file of manifests."""
    return [document for document in yaml.safe_load_all(text) if document]
