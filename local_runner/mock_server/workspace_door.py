"""Cloud metadata, tokens, registry, workspace, datastores and data assets."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from local_runner.mock_server import twin as world
from local_runner.mock_server.credentials import TENANT, TOKEN_SECONDS
from local_runner.mock_server.errors import conflict, not_found, user_error
from local_runner.mock_server.twin import WORKSPACE, Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route, whole_number
from maas_client.spec.catalog import ModelEntry, find_model
from maas_client.spec.job import NAME

REGISTRY = (
    "/mferp/managementfrontend/subscriptions/{sub}/resourceGroups/{group}"
    "/providers/Microsoft.MachineLearningServices/registries/{registry}"
)
_REGISTRY_SUBSCRIPTION = "00000000-1111-0000-0000-000000000000"
_MOST_HOURS = 7 * 24
_DATA_TYPES = ("uri_file", "uri_folder", "mltable")


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    return [
        Route("GET", "/metadata/endpoints", door.metadata, "open"),
        Route("GET", "/{tenant}/v2.0/.well-known/openid-configuration", door.openid, "open"),
        Route("POST", "/{tenant}/oauth2/v2.0/token", door.client_token, "open"),
        Route("GET", "/registrymanagement/v1.0/registries/{registry}/discovery", door.registry),
        Route("GET", f"{REGISTRY}/models", door.registry_models),
        Route("GET", f"{REGISTRY}/models/{{name}}", door.registry_model_container),
        Route("GET", f"{REGISTRY}/models/{{name}}/versions", door.registry_versions),
        Route("GET", f"{REGISTRY}/models/{{name}}/versions/{{version}}", door.registry_model),
        Route("GET", WORKSPACE, door.workspace),
        Route("GET", "/discovery", door.discovery, "open"),
        Route("GET", f"{WORKSPACE}/datastores", door.datastores),
        Route("GET", f"{WORKSPACE}/datastores/{{name}}", door.datastore),
        Route("POST", f"{WORKSPACE}/datastores/{{name}}/listSecrets", door.datastore_secrets),
        Route("GET", f"{WORKSPACE}/data", door.data_list),
        Route("GET", f"{WORKSPACE}/data/{{name}}", door.data_container),
        Route("GET", f"{WORKSPACE}/data/{{name}}/versions", door.data_versions),
        Route("GET", f"{WORKSPACE}/data/{{name}}/versions/{{version}}", door.data_get),
        Route("PUT", f"{WORKSPACE}/data/{{name}}/versions/{{version}}", door.data_put),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def metadata(self, call: Call) -> Reply:
        url = f"{self._twin.site.url}/"
        cloud = {
            "name": "AzureMockCloud",
            "portal": "https://portal.azure.com",
            "resourceManager": url,
            "authentication": {"loginEndpoint": url, "audiences": [self._twin.site.url]},
            "suffixes": {"storage": "core.local"},
        }
        return Reply(body=[cloud])

    def openid(self, call: Call) -> Reply:
        base = f"{self._twin.site.login}/{call.params['tenant']}"
        return Reply(
            body={
                "issuer": f"{base}/v2.0",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "tenant_region_scope": "NA",
            }
        )

    def client_token(self, call: Call) -> Reply:
        """A service principal's token: any secret will do, but there must be one."""
        form = {
            key: values[0] for key, values in parse_qs(call.body.decode("utf-8", "replace")).items()
        }
        if not (form.get("client_secret") or form.get("client_assertion")):
            return Reply(
                401,
                {
                    "error": "invalid_client",
                    "error_description": "AADSTS7000218: client_secret is missing.",
                },
            )
        audience = form.get("scope", "").removesuffix("/.default")
        token, _ = self._twin.secrets.token(audience)
        return Reply(
            body={"token_type": "Bearer", "expires_in": TOKEN_SECONDS, "access_token": token}
        )

    def registry(self, call: Call) -> Reply:
        name = call.params["registry"]
        if name.lower() not in world.REGISTRIES:
            raise not_found("Registry", name)
        return Reply(
            body={
                "registryName": name,
                "primaryRegion": "eastus",
                "primaryRegionResourceProviderUri": f"{self._twin.site.api}/",
                "resourceGroup": "registry-group",
                "subscriptionId": _REGISTRY_SUBSCRIPTION,
            }
        )

    def registry_models(self, call: Call) -> Reply:
        found = [self._container(entry) for entry in world.known_models()]
        return Reply(body={"value": found, "nextLink": None})

    def registry_model_container(self, call: Call) -> Reply:
        return Reply(body=self._container(self._entry(call)))

    def registry_versions(self, call: Call) -> Reply:
        """The newest first, as `$orderBy=createdtime desc` asks for."""
        entry = self._entry(call)
        newest = list(reversed(entry.versions))
        chosen = newest[: whole_number(call.query.get("$top"))]
        return Reply(body={"value": [self._model(entry, v) for v in chosen], "nextLink": None})

    def registry_model(self, call: Call) -> Reply:
        entry, version = self._entry(call), call.params["version"]
        if version not in entry.versions:
            raise not_found("Model", f"{entry.name}:{version}")
        return Reply(body=self._model(entry, version))

    def _entry(self, call: Call) -> ModelEntry:
        entry = find_model(call.params["name"])
        if entry is None:
            raise not_found("Model", call.params["name"])
        return entry

    def _container(self, entry: ModelEntry) -> dict[str, Any]:
        return {
            "id": f"azureml://registries/azureml/models/{entry.name}",
            "name": entry.name,
            "systemData": system_data("2024-04-23T00:00:00+00:00"),
            "properties": {
                "latestVersion": entry.versions[-1],
                "isArchived": False,
                "tags": {},
                "properties": {},
            },
        }

    def _model(self, entry: ModelEntry, version: str) -> dict[str, Any]:
        tags = {"task": "chat-completion", "license": entry.license, "author": "Microsoft"}
        if entry.serverless:
            tags["maas-finetuning-deploy-regions"] = ",".join(entry.deploy_regions)
            tags["maas-finetuning-regions"] = ",".join(entry.tuning_regions)
        skus = ", ".join(entry.finetune_skus)
        properties = {
            "finetune-min-sku-spec": entry.minimum_sku,
            "finetune-recommended-sku": skus,
            "inference-recommended-sku": skus,
            "model_id": entry.hub_id,
        }
        return {
            "id": entry.asset_id(version),
            "name": version,
            "type": "Microsoft.MachineLearningServices/registries/models/versions",
            "systemData": system_data("2024-04-23T00:00:00+00:00"),
            "properties": {
                "modelType": "mlflow_model",
                "modelUri": f"https://registry.invalid/{entry.name}/{version}",
                "description": f"{entry.name} {version}: an entry of the mock's catalogue, no weights.",
                "flavors": {},
                "stage": None,
                "isArchived": False,
                "isAnonymous": False,
                "tags": tags,
                "properties": properties,
            },
        }

    def workspace(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        site = self._twin.site
        return Reply(
            body={
                "id": site.workspace_path,
                "name": site.workspace,
                "type": "Microsoft.MachineLearningServices/workspaces",
                "location": site.region,
                "kind": "Default",
                "sku": {"name": "Basic", "tier": "Basic"},
                "tags": {},
                "identity": {
                    "type": "SystemAssigned",
                    "principalId": "00000000-aaaa-bbbb-cccc-000000000004",
                    "tenantId": TENANT,
                },
                "systemData": system_data("2025-01-01T00:00:00+00:00"),
                "properties": {
                    "friendlyName": site.workspace,
                    "description": "A mock of an Azure ML workspace",
                    "workspaceId": site.workspace_id,
                    "discoveryUrl": f"{site.api}/discovery",
                    "storageAccount": f"{site.workspace_path.partition('/providers')[0]}"
                    "/providers/Microsoft.Storage/storageAccounts/mockacct",
                    "keyVault": "",
                    "applicationInsights": "",
                    "provisioningState": "Succeeded",
                    "mlFlowTrackingUri": f"azureml://{site.api.removeprefix('https://')}"
                    f"/mlflow/v1.0{site.workspace_path}",
                    "publicNetworkAccess": "Enabled",
                    "hbiWorkspace": False,
                    "v1LegacyMode": False,
                    "managedNetwork": {"isolationMode": "Disabled"},
                },
            }
        )

    def discovery(self, call: Call) -> Reply:
        url = self._twin.site.api
        return Reply(body=dict.fromkeys(("api", "history", "experimentation", "catalog"), url))

    def datastores(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        names = [world.BLOB_STORE]
        if call.query.get("isDefault", "").lower() != "true":
            names.append(world.ARTIFACT_STORE)
        return Reply(body={"value": [self._datastore(name) for name in names], "nextLink": None})

    def datastore(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        return Reply(body=self._datastore(call.params["name"]))

    def datastore_secrets(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        self._datastore(call.params["name"])
        hours = call.json().get("expireAfterHours")
        if not isinstance(hours, int | float) or not 0 < hours <= _MOST_HOURS:
            hours = 24
        sas = self._twin.secrets.sas(permissions="rcwdlu", hours=hours)
        return Reply(body={"secretsType": "Sas", "sasToken": f"?{sas}"})

    def _datastore(self, name: str) -> dict[str, Any]:
        if name.lower() not in (world.BLOB_STORE, world.ARTIFACT_STORE):
            raise not_found("Datastore", name)
        site = self._twin.site
        return {
            "id": self._twin.arm_id("datastores", name),
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/datastores",
            "systemData": system_data("2025-01-01T00:00:00+00:00"),
            "properties": {
                "isDefault": name.lower() == world.BLOB_STORE,
                "credentials": {"credentialsType": "AccountKey"},
                "datastoreType": "AzureBlob",
                "accountName": site.account,
                "containerName": site.container(name.lower()),
                "endpoint": site.suffix,
                "protocol": "https",
                "serviceDataAccessAuthIdentity": "WorkspaceSystemAssignedIdentity",
                "subscriptionId": site.subscription,
                "resourceGroup": site.group,
                "description": None,
                "tags": None,
                "properties": None,
            },
        }

    def data_list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        names = {
            doc.body["name"].lower(): doc.body["name"] for doc in self._twin.store.list("data")
        }
        return Reply(
            body={
                "value": [self._data_container(name) for name in names.values()],
                "nextLink": None,
            }
        )

    def data_container(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        return Reply(body=self._data_container(call.params["name"]))

    def _data_container(self, name: str) -> dict[str, Any]:
        found = self._twin.store.list("data", prefix=f"{name.lower()}/")
        if not found:
            raise not_found("Data asset", name)
        numbers = [int(doc.body["version"]) for doc in found if doc.body["version"].isdigit()]
        return {
            "id": self._twin.arm_id("data", name),
            "name": found[0].body["name"],
            "systemData": system_data(found[-1].body["created"]),
            "properties": {
                "latestVersion": found[0].body["version"],
                "nextVersion": str(max(numbers, default=0) + 1),
                "dataType": found[0].body["properties"]["dataType"],
                "isArchived": False,
                "description": None,
                "tags": {},
                "properties": {},
            },
        }

    def data_versions(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        found = self._twin.store.list("data", prefix=f"{call.params['name'].lower()}/")
        chosen = found[: whole_number(call.query.get("$top"))]
        return Reply(body={"value": [self._data(doc.body) for doc in chosen], "nextLink": None})

    def data_get(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, version = call.params["name"], call.params["version"]
        body = self._twin.store.get("data", f"{name}/{version}".lower())
        if body is None:
            raise not_found("Data version", f"{name}:{version}")
        return Reply(body=self._data(body))

    def data_put(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, version = call.params["name"], call.params["version"]
        given = call.properties()
        for word, text in (("name", name), ("version", version)):
            if not NAME.fullmatch(text):
                raise user_error(f"{text!r} is not a {word} of an asset.", inner="InvalidAssetName")
        if not isinstance(given.get("dataUri"), str) or not given["dataUri"]:
            raise user_error("dataUri is required.", inner="MissingDataUri")
        if given.get("dataType") not in _DATA_TYPES:
            raise user_error(
                f"dataType must be one of {', '.join(_DATA_TYPES)}.", inner="InvalidDataType"
            )
        key = f"{name}/{version}".lower()
        with self._twin.store.transaction():
            before = self._twin.store.get("data", key)
            if before and before["properties"]["dataUri"] != given["dataUri"]:
                raise conflict(
                    f"Asset paths cannot be updated. {name}:{version} already has another dataUri."
                )
            created = before["created"] if before else self._twin.clock.iso()
            body = {"name": name, "version": version, "created": created, "properties": given}
            self._twin.store.put("data", key, body)
        return Reply(200 if before else 201, self._data(body))

    def _data(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._twin.arm_id("data", body["name"], "versions", body["version"]),
            "name": body["version"],
            "type": "Microsoft.MachineLearningServices/workspaces/data/versions",
            "systemData": system_data(body["created"]),
            "properties": {
                "isArchived": False,
                "isAnonymous": False,
                "tags": {},
                "properties": {},
                **body["properties"],
            },
        }
