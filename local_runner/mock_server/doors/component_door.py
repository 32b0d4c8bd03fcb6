"""The registry's pipeline component for chat completion: its containers, versions and interface."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from local_runner.mock_server import twin as world
from local_runner.mock_server.errors import ServiceError, not_found
from local_runner.mock_server.twin import Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route, whole_number

_COMPONENTS = (
    "/mferp/managementfrontend/subscriptions/{sub}/resourceGroups/{group}"
    "/providers/Microsoft.MachineLearningServices/registries/{registry}/components"
)
_LATEST = "azureml_default"
"""What azure-ai-ml asks for where the caller names no version."""
_PUBLISHED = "2025-01-01T00:00:00+00:00"


@cache
def component() -> dict[str, Any]:
    """The component as data."""
    place = resources.files("local_runner.mock_server.doors").joinpath(
        "chat_completion_pipeline.toml"
    )
    return tomllib.loads(place.read_text(encoding="utf-8"))


def routes(_: Twin) -> list[Route]:
    """The routes of this door; what they show never changes."""
    one = f"{_COMPONENTS}/{{name}}"
    verbs = "registry.components"

    def read(path: str, handler: Any, call: str) -> Route:
        return Route("GET", path, handler, quick=True, call=call)

    return [
        read(_COMPONENTS, _list, f"{verbs}.list"),
        read(one, _get_container, f"{verbs}.archive"),
        read(f"{one}/versions", _versions, f"{verbs}.get(label), list(name)"),
        read(f"{one}/versions/{{version}}", _get, f"{verbs}.get"),
    ]


def known_version(registry: str, name: str, version: str) -> str:
    """The version that is meant.

    Raises:
        ServiceError: there is no such registry, component or version.
    """
    found = component()
    if registry.lower() not in world.REGISTRIES:
        raise not_found("Registry", registry)
    if name.lower() != found["name"]:
        raise _no_component(f"{name}:{version}")
    if version.lower() in (_LATEST, "latest"):
        return str(found["versions"][-1])
    if version not in found["versions"]:
        raise _no_component(f"{name}:{version}")
    return version


def component_id(version: str) -> str:
    """The component's asset id."""
    return f"azureml://registries/azureml/components/{component()['name']}/versions/{version}"


def _list(call: Call) -> Reply:
    known_version(call.params["registry"], component()["name"], _LATEST)
    return Reply(body={"value": [_container()], "nextLink": None})


def _get_container(call: Call) -> Reply:
    known_version(call.params["registry"], call.params["name"], _LATEST)
    return Reply(body=_container())


def _versions(call: Call) -> Reply:
    known_version(call.params["registry"], call.params["name"], _LATEST)
    newest = list(reversed(component()["versions"]))
    shown = [_version(version) for version in newest[: whole_number(call.query.get("$top"))]]
    return Reply(body={"value": shown, "nextLink": None})


def _get(call: Call) -> Reply:
    params = call.params
    version = known_version(params["registry"], params["name"], params["version"])
    return Reply(body=_version(version))


def _container() -> dict[str, Any]:
    found = component()
    return {
        "id": f"azureml://registries/azureml/components/{found['name']}",
        "name": found["name"],
        "type": "Microsoft.MachineLearningServices/registries/components",
        "systemData": system_data(_PUBLISHED),
        "properties": {
            "latestVersion": found["versions"][-1],
            "nextVersion": None,
            "isArchived": False,
            "description": None,
            "tags": {},
            "properties": {},
            "provisioningState": "Succeeded",
        },
    }


def _version(version: str) -> dict[str, Any]:
    return {
        "id": component_id(version),
        "name": version,
        "type": "Microsoft.MachineLearningServices/registries/components/versions",
        "systemData": system_data(_PUBLISHED),
        "properties": {
            "description": None,
            "tags": {},
            "properties": {},
            "isArchived": False,
            "isAnonymous": False,
            "stage": None,
            "provisioningState": "Succeeded",
            "componentSpec": _spec(version),
        },
    }


def _spec(version: str) -> dict[str, Any]:
    """The interface; the steps inside are not shown: nobody could fetch their components here."""
    found = component()
    inputs = {
        name: {"optional": True, "description": None, **given}
        for name, given in found["inputs"].items()
    }
    return {
        "$schema": "https://azuremlschemas.azureedge.net/latest/pipelineComponent.schema.json",
        "name": found["name"],
        "version": version,
        "type": "pipeline",
        "display_name": found["display_name"],
        "is_deterministic": True,
        "tags": {},
        "inputs": inputs,
        "outputs": {name: {"type": kind} for name, kind in found["outputs"].items()},
        "_source": "REMOTE.REGISTRY",
    }


def _no_component(name: str) -> ServiceError:
    return ServiceError(
        404, "UserError", f"Component {name} was not found.", inner="ComponentNotFound"
    )
