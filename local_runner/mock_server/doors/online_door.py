"""Managed online endpoints: made, shown, keyed, their traffic shared out, deleted."""

from __future__ import annotations

import re
from typing import Any

from local_runner.mock_server.credentials import TENANT
from local_runner.mock_server.errors import ServiceError, conflict, not_found, user_error
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import LRO_PACE, WORKSPACE, Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route, part

ONLINE = f"{WORKSPACE}/onlineEndpoints"
NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]")
"""Of endpoints and deployments; the length is azure-ai-ml's."""
_MODES = {"key": "Key", "amltoken": "AMLToken", "aadtoken": "AADToken"}
_ALL = 100
_REFRESH_SECONDS = 600
_TEXT, _MAP = {"type": ["string", "null"]}, {"type": ["object", "null"]}
_ENDPOINT = {
    "type": "object",
    "required": ["location", "properties"],
    "properties": {
        "location": {"type": "string"},
        "identity": _MAP,
        "tags": _MAP,
        "properties": {
            "type": "object",
            "required": ["authMode"],
            "properties": {
                "authMode": {"enum": list(_MODES.values())},
                "description": _TEXT,
                "traffic": _MAP,
                "mirrorTraffic": _MAP,
                "properties": _MAP,
                "publicNetworkAccess": {"enum": ["Enabled", "Disabled", None]},
            },
        },
    },
}
_KEYS = {
    "type": "object",
    "required": ["keyType"],
    "properties": {"keyType": {"enum": ["Primary", "Secondary"]}, "keyValue": _TEXT},
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    one, verbs = f"{ONLINE}/{{name}}", "online_endpoints"
    renew = f"{verbs}.begin_regenerate_keys"
    return [
        Route("PUT", one, door.put, call=f"{verbs}.begin_create_or_update", body=_ENDPOINT),
        Route("GET", one, door.get, quick=True, call=f"{verbs}.get"),
        Route("GET", ONLINE, door.list, call=f"{verbs}.list"),
        Route("DELETE", one, door.delete, call=f"{verbs}.begin_delete"),
        Route("POST", f"{one}/listKeys", door.keys, call=f"{verbs}.get_keys"),
        Route("POST", f"{one}/regenerateKeys", door.regenerate, call=renew, body=_KEYS),
        Route("POST", f"{one}/token", door.token, call=f"{verbs}.get_keys"),
    ]


def find_endpoint(twin: Twin, params: Any) -> Body:
    """The endpoint that a path names.

    Raises:
        ServiceError: there is none.
    """
    twin.check_workspace(params)
    found = twin.store.get("online", params["name"].lower())
    if found is None:
        raise not_found("Online endpoint", params["name"])
    return found


def begun(twin: Twin, call: Call, operation: Body) -> dict[str, str]:
    """The headers of something that takes time, and where it is remembered."""
    # The prefix is a deployment's; endpoint_door answers for a serverless endpoint's.
    name = twin.operation_id().replace("oeidp", "odidp", 1)
    twin.store.put("operation", name, operation)
    version = call.query.get("api-version", "2023-04-01-preview")
    url = twin.site.operation_url(f"mfeOperationsStatus/{name}", version=version)
    return {"Azure-AsyncOperation": url, "x-ms-async-operation-timeout": "PT1H", **LRO_PACE}


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def put(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, body, given = call.params["name"], call.json(), call.properties()
        if not NAME.fullmatch(name):
            raise user_error(
                f"{name!r} is not an endpoint name: 3 to 32 letters, digits and '-', a letter first.",
                inner="InvalidEndpointName",
            )
        mode, key = _mode(given), name.lower()
        with self._twin.store.transaction():
            before = self._twin.store.get("online", key)
            if before is None:
                self._twin.controls.check("endpoints", self._twin.store.count("online"))
            elif before["mode"] != mode:
                raise conflict(f"Endpoint {name} exists: its authMode cannot be changed.")
            endpoint = _body(self._twin, name, before) | {
                "mode": mode,
                "identity": part(body, "identity") or {"type": "SystemAssigned"},
                "tags": part(body, "tags"),
                "description": given.get("description"),
                "own": part(given, "properties"),
                "network": given.get("publicNetworkAccess") or "Enabled",
            }
            for word in ("traffic", "mirrorTraffic"):
                if given.get(word) is not None:
                    endpoint[word] = self._shares(name, word, part(given, word))
            self._twin.store.put("online", key, endpoint)
        headers = begun(self._twin, call, {"online": key})
        return Reply(200 if before else 201, self._shown(endpoint), headers)

    def get(self, call: Call) -> Reply:
        return Reply(body=self._shown(find_endpoint(self._twin, call.params)))

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        found = [self._shown(doc.body) for doc in self._twin.store.list("online")]
        return Reply(body={"value": found, "nextLink": None})

    def delete(self, call: Call) -> Reply:
        """The endpoint with all that is deployed at it."""
        self._twin.check_workspace(call.params)
        key = call.params["name"].lower()
        with self._twin.store.transaction():
            if not self._twin.store.delete("online", key):
                return Reply(204)
            for doc in self._twin.store.list("deployment", prefix=f"{key}/"):
                self._twin.store.delete("deployment", doc.key)
        headers = begun(self._twin, call, {})
        return Reply(202, headers={"Location": headers["Azure-AsyncOperation"], **headers})

    def keys(self, call: Call) -> Reply:
        endpoint = self._with_mode(call, "Key", "listKeys")
        return Reply(body={"primaryKey": endpoint["keys"][0], "secondaryKey": endpoint["keys"][1]})

    def regenerate(self, call: Call) -> Reply:
        self._with_mode(call, "Key", "regenerateKeys")
        given = call.json()
        which = {"primary": 0, "secondary": 1}.get(str(given.get("keyType", "")).lower())
        if which is None:
            raise user_error("keyType must be Primary or Secondary.", inner="InvalidKeyType")
        wanted = given.get("keyValue")
        with self._twin.store.transaction():  # the other key may be made anew at once
            endpoint = self._with_mode(call, "Key", "regenerateKeys")
            keys = list(endpoint["keys"])
            # azure-ai-ml sends the key that is there, and means another one.
            keys[which] = str(wanted) if wanted and wanted not in keys else self._twin.dice.key()
            self._twin.store.change("online", endpoint["name"].lower(), keys=keys)
        headers = begun(self._twin, call, {})
        return Reply(202, headers={"Location": headers["Azure-AsyncOperation"], **headers})

    def token(self, call: Call) -> Reply:
        endpoint = find_endpoint(self._twin, call.params)
        if endpoint["mode"] == "Key":
            raise _wrong_mode(endpoint, "token")
        token, until = self._twin.secrets.token("https://ml.azure.com")
        return Reply(
            body={
                "accessToken": token,
                "expiryTimeUtc": until,
                "refreshAfterTimeUtc": until - _REFRESH_SECONDS,
                "tokenType": "Bearer",
            }
        )

    def _with_mode(self, call: Call, mode: str, verb: str) -> Body:
        endpoint = find_endpoint(self._twin, call.params)
        if endpoint["mode"] != mode:
            raise _wrong_mode(endpoint, verb)
        return endpoint

    def _shares(self, name: str, word: str, given: dict[str, Any]) -> dict[str, int]:
        """Traffic by deployment, checked; deployments that get none are left out."""
        for deployment, share in given.items():
            if isinstance(share, bool) or not isinstance(share, int) or not 0 <= share <= _ALL:
                raise user_error(
                    f"{word}.{deployment} must be a whole number from 0 to {_ALL}.",
                    inner="InvalidTraffic",
                )
            if self._twin.store.get("deployment", f"{name}/{deployment}".lower()) is None:
                raise user_error(
                    f"{word} names {deployment}, which is no deployment of endpoint {name}.",
                    inner="DeploymentNotFound",
                )
        if word == "traffic" and (total := sum(given.values())) not in (0, _ALL):
            raise user_error(
                f"The traffic percents sum up to {total}; they must sum up to 0 or {_ALL}.",
                inner="InvalidTraffic",
            )
        return {deployment: share for deployment, share in given.items() if share}

    def _shown(self, endpoint: Body) -> dict[str, Any]:
        site, name = self._twin.site, endpoint["name"]
        uri = site.scoring_uri("online", name)
        identity = endpoint["identity"] | {
            "principalId": endpoint["principal"],
            "tenantId": TENANT,
        }
        return {
            "id": self._twin.arm_id("onlineEndpoints", name),
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
            "location": site.region,
            "kind": "Managed",
            "tags": endpoint["tags"],
            "identity": identity,
            "systemData": system_data(endpoint["created"]),
            "properties": {
                "authMode": endpoint["mode"],
                "description": endpoint["description"],
                "keys": None,
                "properties": {
                    **endpoint["own"],
                    "azureml.onlineendpointid": self._twin.arm_id("onlineEndpoints", name).lower(),
                },
                "compute": None,
                "traffic": endpoint["traffic"],
                "mirrorTraffic": endpoint["mirrorTraffic"],
                "provisioningState": "Succeeded",
                "publicNetworkAccess": endpoint["network"],
                "scoringUri": f"{uri}/score",
                "swaggerUri": f"{uri}/swagger.json",
            },
        }


def _mode(given: dict[str, Any]) -> str:
    mode = _MODES.get(str(given.get("authMode", "")).lower())
    if mode is None:
        raise user_error(
            f"authMode must be one of {', '.join(_MODES.values())}.", inner="InvalidAuthMode"
        )
    return mode


def _wrong_mode(endpoint: Body, verb: str) -> ServiceError:
    return user_error(
        f"{verb} is not for endpoint {endpoint['name']}: its authMode is {endpoint['mode']}.",
        inner="AuthModeNotSupported",
    )


def _body(twin: Twin, name: str, before: Body | None) -> Body:
    return before or {
        "name": name,
        "keys": [twin.dice.key(), twin.dice.key()],
        "principal": twin.dice.uuid(),
        "traffic": {},
        "mirrorTraffic": {},
        "created": twin.clock.iso(),
    }
