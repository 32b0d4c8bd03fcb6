"""Cloud metadata, tokens, the workspace and its datastores."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from local_runner.mock_server import twin as world
from local_runner.mock_server.credentials import ACCOUNT, TENANT, TOKEN_SECONDS
from local_runner.mock_server.errors import not_found
from local_runner.mock_server.twin import WORKSPACE, Twin, system_data
from local_runner.mock_server.wire import Call, Handler, Reply, Route, Source

_MOST_HOURS = 7 * 24
_SECRETS = {
    "type": "object",
    "properties": {
        "expirableSecret": {"type": "boolean"},
        "expireAfterHours": {"type": "number", "minimum": 0},
    },
}
_FORM = {
    "type": "object",
    "properties": {
        "grant_type": {"type": "string"},
        "client_id": {"type": "string"},
        "client_secret": {"type": "string"},
        "scope": {"type": "string"},
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    subscription = "/subscriptions/{sub}"
    group = f"{subscription}/resourceGroups/{{group}}"
    kind = "providers/Microsoft.MachineLearningServices/workspaces"
    store = f"{WORKSPACE}/datastores/{{name}}"

    def read(path: str, handler: Handler, call: str, guard: str = "bearer") -> Route:
        source: Source = "recorded" if "datastores" in path else "sdk"
        return Route("GET", path, handler, guard, quick=True, source=source, call=call)

    openid, token = "/{tenant}/v2.0/.well-known/openid-configuration", "/{tenant}/oauth2/v2.0/token"
    secret = "ClientSecretCredential.get_token"  # noqa: S105 - a verb of the SDK
    return [
        read("/metadata/endpoints", door.metadata, "MLClient", "open"),
        read("/{tenant}/discovery/instance", door.authorities, secret, "open"),
        read(openid, door.openid, secret, "open"),
        Route("POST", token, door.client_token, "open", call=secret, body=_FORM),
        read(f"{group}/{kind}", door.workspaces, "workspaces.list"),
        read(f"{subscription}/{kind}", door.workspaces, "workspaces.list(scope)"),
        read(WORKSPACE, door.workspace, "workspaces.get"),
        read("/discovery", door.discovery, "jobs.stream", "open"),
        read(f"{WORKSPACE}/datastores", door.datastores, "datastores.list"),
        read(store, door.datastore, "datastores.get"),
        Route("POST", f"{store}/listSecrets", door.datastore_secrets, source="recorded",
              call="data.create_or_update", body=_SECRETS),
    ]  # fmt: skip


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

    def authorities(self, call: Call) -> Reply:
        """Which hosts give tokens: what MSAL asks the public cloud before it asks for one."""
        host = self._twin.site.login.removeprefix("https://")
        alias = {"preferred_network": host, "preferred_cache": host, "aliases": [host]}
        tenant = f"{self._twin.site.login}/{TENANT}"
        return Reply(
            body={
                "tenant_discovery_endpoint": f"{tenant}/v2.0/.well-known/openid-configuration",
                "api-version": "1.1",
                "metadata": [alias],
            }
        )

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

    def workspaces(self, call: Call) -> Reply:
        """The one there is."""
        here = {"ws": self._twin.site.workspace, "group": self._twin.site.group}
        self._twin.check_workspace(here | dict(call.params))
        return Reply(body={"value": [self._workspace()], "nextLink": None})

    def workspace(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        return Reply(body=self._workspace())

    def _workspace(self) -> dict[str, Any]:
        site = self._twin.site
        group = f"{site.workspace_path.partition('/providers')[0]}/providers"
        return {
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
                "storageAccount": f"{group}/Microsoft.Storage/storageAccounts/{ACCOUNT}",
                "keyVault": f"{group}/Microsoft.KeyVault/vaults/mock-vault",
                "applicationInsights": f"{group}/Microsoft.Insights/components/mock-insights",
                "provisioningState": "Succeeded",
                "mlFlowTrackingUri": f"azureml://{site.api.removeprefix('https://')}"
                f"/mlflow/v1.0{site.workspace_path}",
                "publicNetworkAccess": "Enabled",
                "hbiWorkspace": False,
                "v1LegacyMode": False,
                "managedNetwork": {"isolationMode": "Disabled"},
            },
        }

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
