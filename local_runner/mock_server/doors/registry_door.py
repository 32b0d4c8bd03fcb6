"""The registry of Microsoft's models: discovery, and every model's tags, properties, regions and end."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from local_runner.mock_server import twin as world
from local_runner.mock_server.errors import not_found
from local_runner.mock_server.twin import Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route, archived_wanted, whole_number
from maas_client.spec.catalog import ModelEntry, find_model

REGISTRY = (
    "/mferp/managementfrontend/subscriptions/{sub}/resourceGroups/{group}"
    "/providers/Microsoft.MachineLearningServices/registries/{registry}"
)
_SUBSCRIPTION = "00000000-1111-0000-0000-000000000000"
_PUBLISHED = dt.date(2024, 4, 23)
"""The day of the family's first model. Every version is a week younger than the one before it: ours."""
_LEGACY, _DEPRECATED = "2025-06-09", "2025-06-30"
"""What the registry says of every model that it retires on 2025-08-30."""


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    one = f"{REGISTRY}/models/{{name}}"

    def read(path: str, handler: Any, call: str) -> Route:
        return Route("GET", path, handler, quick=True, source="sdk", call=call)

    discovery = "/registrymanagement/v1.0/registries/{registry}/discovery"
    return [
        read(discovery, door.discovery, "MLClient(registry_name)"),
        read(f"{REGISTRY}/models", door.list, "registry.models.list"),
        read(one, door.container, "registry.models.archive"),
        read(f"{one}/versions", door.versions, "registry.models.get(label), models.list(name)"),
        read(f"{one}/versions/{{version}}", door.get, "registry.models.get"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def discovery(self, call: Call) -> Reply:
        name = _known(call)
        return Reply(
            body={
                "registryName": name,
                "primaryRegion": "eastus",
                "primaryRegionResourceProviderUri": f"{self._twin.site.api}/",
                "resourceGroup": "registry-group",
                "subscriptionId": _SUBSCRIPTION,
            }
        )

    def list(self, call: Call) -> Reply:
        _known(call)
        shown = [self._container(entry) for entry in world.known_models()]
        wanted = archived_wanted(call.query)
        value = [item for item in shown if item["properties"]["isArchived"] in wanted]
        return Reply(body={"value": value, "nextLink": None})

    def container(self, call: Call) -> Reply:
        return Reply(body=self._container(_entry(call)))

    def versions(self, call: Call) -> Reply:
        """The newest first, as `$orderBy=createdtime desc` asks for."""
        entry = _entry(call)
        newest = list(reversed(entry.versions))
        chosen = newest[: whole_number(call.query.get("$top"))]
        return Reply(body={"value": [self._model(entry, v) for v in chosen], "nextLink": None})

    def get(self, call: Call) -> Reply:
        entry, version = _entry(call), call.params["version"]
        if version not in entry.versions:
            raise not_found("Model", f"{entry.name}:{version}")
        return Reply(body=self._model(entry, version))

    def _container(self, entry: ModelEntry) -> dict[str, Any]:
        return {
            "id": f"azureml://registries/azureml/models/{entry.name}",
            "name": entry.name,
            "type": "Microsoft.MachineLearningServices/registries/models",
            "systemData": _published(entry, entry.versions[0]),
            "properties": {
                "latestVersion": entry.versions[-1],
                "nextVersion": None,
                "isArchived": entry.is_retired(self._twin.site.as_of),
                "description": None,
                "tags": {},
                "properties": {},
                "provisioningState": "Succeeded",
            },
        }

    def _model(self, entry: ModelEntry, version: str) -> dict[str, Any]:
        return {
            "id": entry.asset_id(version),
            "name": version,
            "type": "Microsoft.MachineLearningServices/registries/models/versions",
            "systemData": _published(entry, version),
            "properties": {
                "modelType": "mlflow_model",
                "modelUri": f"https://registry.invalid/{entry.name}/{version}",
                "description": f"{entry.name} {version}: an entry of the mock's catalogue, no weights.",
                "flavors": {},
                "stage": None,
                "jobName": None,
                "isArchived": entry.is_retired(self._twin.site.as_of),
                "isAnonymous": False,
                "provisioningState": "Succeeded",
                "tags": _tags(entry),
                "properties": _properties(entry),
                "systemMetadata": _system_metadata(entry),
            },
        }


def _known(call: Call) -> str:
    """The registry that the path names."""
    name = call.params["registry"]
    if name.lower() not in world.REGISTRIES:
        raise not_found("Registry", name)
    return name


def _entry(call: Call) -> ModelEntry:
    _known(call)
    entry = find_model(call.params["name"])
    if entry is None:
        raise not_found("Model", call.params["name"])
    return entry


def _published(entry: ModelEntry, version: str) -> dict[str, Any]:
    day = _PUBLISHED + dt.timedelta(weeks=entry.versions.index(version))
    made = {"createdBy": "Microsoft", "lastModifiedBy": "Microsoft"}
    return system_data(f"{day.isoformat()}T00:00:00+00:00") | made


def _tags(entry: ModelEntry) -> dict[str, str]:
    """As in the registry's published specifications; dates where the model has an end."""
    tags = {
        "task": "chat-completion",
        "license": entry.license,
        "author": "Microsoft",
        "displayName": entry.name,
        "textContextWindow": str(entry.context),
        "SharedComputeCapacityEnabled": "true",
        "inference_compute_allow_list": json.dumps(entry.inference_skus or entry.finetune_skus),
        "finetune_compute_allow_list": json.dumps(entry.finetune_skus),
        "model_specific_defaults": json.dumps(_defaults(entry)),
        "maas-inference": "true",
    }
    if entry.serverless:
        tags["maas-finetuning"] = "true"
        tags["maas-finetuning-deploy-regions"] = ",".join(entry.deploy_regions)
        tags["maas-finetuning-regions"] = ",".join(entry.tuning_regions)
    return tags | _dates(entry)


def _dates(entry: ModelEntry) -> dict[str, str]:
    """The steps of a model's end; none where it has none."""
    if entry.retired is None:
        return {}
    return {
        "InferenceLegacyDate": _LEGACY,
        "InferenceDeprecationDate": _DEPRECATED,
        "InferenceRetirementDate": entry.retired.isoformat(),
        "FinetuneDeprecationDate": _DEPRECATED,
        "FinetuneRetirementDate": entry.retired.isoformat(),
    }


def _system_metadata(entry: ModelEntry) -> dict[str, Any]:
    """Where the registry's specifications have the regions and dates since 2026; older ones have tags.

    The names under `maasFinetuning` are the specifications'; the wire's form, and the names of the
    dates, are ours: no recording shows them.
    """
    metadata: dict[str, Any] = {"author": "Microsoft", "license": entry.license}
    if entry.serverless:
        metadata["maasFinetuning"] = {
            "maasFinetuningRegions": list(entry.tuning_regions),
            "maasFinetuningDeployRegions": list(entry.deploy_regions),
        }
    if dates := _dates(entry):
        named = {f"{key[0].lower()}{key[1:]}": day for key, day in dates.items()}
        metadata["deprecation"] = named | {"replacement": entry.replacement}
    return metadata


def _defaults(entry: ModelEntry) -> dict[str, str]:
    """`model_specific_defaults`, with the bounds under names of their own, as the registry has them."""
    bounds = {
        f"{key}_{word}": f"{value:g}"
        for key, pair in entry.bounds.items()
        for word, value in zip(("min", "max"), pair, strict=True)
    }
    return dict(entry.defaults) | bounds


def _properties(entry: ModelEntry) -> dict[str, str]:
    """The SKUs that notebooks read. What the specifications do not say of inference is as for tuning."""
    return {
        "SharedComputeCapacityEnabled": "true",
        "languages": "en",
        "finetuning-tasks": "chat-completion",
        "finetune-min-sku-spec": entry.minimum_sku,
        "finetune-recommended-sku": ", ".join(entry.finetune_skus),
        "inference-min-sku-spec": entry.inference_minimum_sku or entry.minimum_sku,
        "inference-recommended-sku": ", ".join(entry.inference_skus or entry.finetune_skus),
        "model_id": entry.hub_id,
    }
