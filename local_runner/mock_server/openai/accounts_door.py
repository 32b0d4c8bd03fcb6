"""The Cognitive Services account in Azure Resource Manager: the account, its keys, its deployments."""

from __future__ import annotations

import re
from typing import Any

from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.names import FOUNDRY
from local_runner.mock_server.openai import accounts
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import LRO_PACE, Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route, part

_GROUP = (
    "/subscriptions/{sub}/resourceGroups/{group}/providers/Microsoft.CognitiveServices/accounts"
)
_ONE = f"{_GROUP}/{{account}}"
_TYPE = "Microsoft.CognitiveServices/accounts"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SKUS = (
    "Standard", "GlobalStandard", "DataZoneStandard", "DeveloperTier", "ProvisionedManaged",
    "GlobalProvisionedManaged",
)  # fmt: skip
_DEPLOYMENT = {
    "type": "object",
    "required": ["sku", "properties"],
    "properties": {
        "sku": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"enum": list(_SKUS)}, "capacity": {"type": "integer"}},
        },
        "properties": {
            "type": "object",
            "required": ["model"],
            "properties": {
                "model": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        key: {"type": ["string", "null"]} for key in ("format", "name", "version")
                    },
                }
            },
        },
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door, every, verbs = _Door(twin), f"{_ONE}/deployments", "azure-mgmt-cognitiveservices"

    def route(method: str, path: str, handler: Any, call: str, body: Any = None) -> Route:
        words = f"{verbs}: {call}"
        return Route(method, path, handler, source="documented", call=words, body=body)

    one, put = f"{every}/{{deployment}}", "deployments.begin_create_or_update"
    return [
        route("GET", _GROUP, door.accounts, "accounts.list_by_resource_group"),
        route("GET", _ONE, door.account, "accounts.get"),
        route("POST", f"{_ONE}/listKeys", door.keys, "accounts.list_keys"),
        route("GET", every, door.list, "deployments.list"),
        route("GET", one, door.get, "deployments.get"),
        route("PUT", one, door.put, put, _DEPLOYMENT),
        route("DELETE", one, door.delete, "deployments.begin_delete"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def accounts(self, call: Call) -> Reply:
        self._twin.check_workspace({**call.params, "ws": self._twin.site.workspace})
        return Reply(body={"value": [self._account()]})

    def account(self, call: Call) -> Reply:
        self._check(call)
        return Reply(body=self._account())

    def keys(self, call: Call) -> Reply:
        self._check(call)
        key = self._twin.secrets.api_key
        return Reply(body={"key1": key, "key2": key})

    def list(self, call: Call) -> Reply:
        self._check(call)
        found = self._twin.store.list(accounts.KIND)
        return Reply(body={"value": [self._shown(doc.body) for doc in found], "nextLink": None})

    def get(self, call: Call) -> Reply:
        return Reply(body=self._shown(self._found(call)))

    def put(self, call: Call) -> Reply:
        self._check(call)
        name = call.params["deployment"]
        if not _NAME.fullmatch(name):
            raise ServiceError(
                400, "InvalidResourceName", f"{name!r} is not a name of a deployment."
            )
        given = call.json()
        sku, model = part(given, "sku"), part(part(given, "properties"), "model")
        if sku.get("name") not in _SKUS:
            raise ServiceError(
                400, "InvalidResourceProperties", f"sku.name must be one of {', '.join(_SKUS)}."
            )
        capacity = sku.get("capacity", 1)
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ServiceError(
                400, "InvalidCapacity", "sku.capacity must be a whole number from 1."
            )
        kept = {
            "sku": {"name": sku["name"], "capacity": capacity},
            "format": str(model.get("format") or "OpenAI"),
            "version": str(model.get("version") or "1"),
        }
        try:
            made, new = accounts.deploy(self._twin, name, str(model.get("name") or ""), kept)
        except ServiceError as error:
            words = (
                f"The model 'Format: {kept['format']}, Name: {model.get('name')}, "
                f"Version: {kept['version']}' of account deployment is not supported."
            )
            raise ServiceError(400, "DeploymentModelNotSupported", words) from error
        return Reply(201 if new else 200, self._shown(made), LRO_PACE)

    def delete(self, call: Call) -> Reply:
        self._check(call)
        gone = self._twin.store.delete(accounts.KIND, call.params["deployment"].lower())
        return Reply(200 if gone else 204)

    def _found(self, call: Call) -> Body:
        self._check(call)
        name = call.params["deployment"]
        found = accounts.find(self._twin, name)
        if found is None:
            raise _absent(f"{_TYPE}/{call.params['account']}/deployments/{name}")
        return found

    def _check(self, call: Call) -> None:
        """The one account there is.

        Raises:
            ServiceError: the path names another one.
        """
        self._twin.check_workspace({**call.params, "ws": self._twin.site.workspace})
        if call.params["account"].lower() != FOUNDRY:
            raise _absent(f"{_TYPE}/{call.params['account']}")

    def _account(self) -> dict[str, Any]:
        site = self._twin.site
        url = f"https://{FOUNDRY}.openai.azure.com/" if site.public else f"{site.url}/"
        return {
            "id": self._id(),
            "name": FOUNDRY,
            "type": _TYPE,
            "location": site.region,
            "kind": "AIServices",
            "sku": {"name": "S0"},
            "properties": {
                "endpoint": url,
                "endpoints": {"OpenAI Language Model Instance API": url},
                "provisioningState": "Succeeded",
                "customSubDomainName": FOUNDRY,
            },
        }

    def _id(self) -> str:
        site = self._twin.site
        return (
            f"/subscriptions/{site.subscription}/resourceGroups/{site.group}"
            f"/providers/{_TYPE}/{FOUNDRY}"
        )

    def _shown(self, deployment: Body) -> dict[str, Any]:
        given = deployment["given"]
        return {
            "id": f"{self._id()}/deployments/{deployment['name']}",
            "name": deployment["name"],
            "type": f"{_TYPE}/deployments",
            "sku": given["sku"],
            "systemData": system_data(deployment["created"], deployment["modified"]),
            "properties": {
                "model": {
                    "format": given["format"],
                    "name": deployment["model"],
                    "version": given["version"],
                },
                "versionUpgradeOption": "NoAutoUpgrade",
                "capabilities": {"chatCompletion": "true"},
                "provisioningState": accounts.state(self._twin, deployment),
            },
        }


def _absent(what: str) -> ServiceError:
    return ServiceError(404, "ResourceNotFound", f"The Resource '{what}' was not found.")
