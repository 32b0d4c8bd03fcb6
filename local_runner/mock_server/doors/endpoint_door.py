"""Serverless endpoints: made, shown, keyed, deleted; and the operations that take time."""

from __future__ import annotations

import re
import time
from typing import Any

from local_runner.mock_server.doors import marketplace_door, served
from local_runner.mock_server.errors import conflict, not_found, user_error
from local_runner.mock_server.lifecycle import LIVE
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import LRO_PACE, WORKSPACE, Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]{1,50}[a-zA-Z0-9]")
_LOCATION = "/subscriptions/{sub}/providers/Microsoft.MachineLearningServices/locations/{region}"
_OPERATIONS = f"{_LOCATION}/mfeOperationsStatus/{{operation}}"
_RESULTS = f"{_LOCATION}/mfeOperationResults/{{operation}}"
_KEY_LENGTH = 8
_PROVISIONING = {
    "Online": "Succeeded",
    "Creating": "Creating",
    "CreationFailed": "Failed",
    "Deleting": "Deleting",
}
_LEAVE_SECONDS = 0.2
"""How long an endpoint is Deleting."""
_ENDPOINT = {
    "type": "object",
    "required": ["properties"],
    "properties": {
        "location": {"type": "string"},
        "sku": {"type": "object"},
        "tags": {"type": ["object", "null"]},
        "properties": {
            "type": "object",
            "required": ["modelSettings"],
            "properties": {
                "authMode": {"enum": ["Key"]},
                "modelSettings": {
                    "type": "object",
                    "required": ["modelId"],
                    "properties": {"modelId": {"type": "string"}},
                },
            },
        },
    },
}
_KEYS = {
    "type": "object",
    "required": ["keyType"],
    "properties": {
        "keyType": {"enum": ["Primary", "Secondary"]},
        "keyValue": {"type": ["string", "null"], "minLength": _KEY_LENGTH},
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    every = f"{WORKSPACE}/serverlessEndpoints"
    one, verbs = f"{every}/{{name}}", "serverless_endpoints"
    renew = f"{verbs}.begin_regenerate_keys"
    return [
        Route("PUT", one, door.put, call=f"{verbs}.begin_create_or_update", body=_ENDPOINT),
        Route("GET", one, door.get, call=f"{verbs}.get"),
        Route("GET", every, door.list, call=f"{verbs}.list"),
        Route("DELETE", one, door.delete, call=f"{verbs}.begin_delete"),
        Route("POST", f"{one}/listKeys", door.keys, call=f"{verbs}.get_keys"),
        Route("POST", f"{one}/regenerateKeys", door.regenerate, call=renew, body=_KEYS),
        Route("GET", _OPERATIONS, door.operation, call="LROPoller.result"),
        Route("GET", _RESULTS, door.result, call="LROPoller.result"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def put(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, given = call.params["name"], call.properties()
        if not _NAME.fullmatch(name):
            raise user_error(
                f"{name!r} is not an endpoint name: 3 to 52 letters, digits and '-', a letter first.",
                inner="InvalidEndpointName",
            )
        settings = given.get("modelSettings")
        model_id = str(settings.get("modelId", "")) if isinstance(settings, dict) else ""
        key = name.lower()
        with self._twin.store.transaction():
            model = self._model(model_id)  # nobody deletes it any more
            before = self._twin.store.get("endpoint", key)
            if before and before["model_key"] != model["key"]:
                raise conflict(f"Endpoint {name} already serves another model.")
            if before is None:
                self._refuse_second(name, model)
                self._twin.controls.check("endpoints", self._twin.store.count("endpoint"))
                self._twin.store.delete("leaving", key)
                self._twin.store.put("endpoint", key, _body(self._twin, name, model_id, model))
            endpoint = self._twin.store.get("endpoint", key) or {}
        self._twin.speaker.warm_up(endpoint["base_model"])
        operation = self._twin.operation_id()
        self._twin.store.put("operation", operation, {"endpoint": key})
        return Reply(
            200 if before else 201, self._shown(endpoint), self._operation(call, operation)
        )

    def _operation(self, call: Call, operation: str) -> dict[str, str]:
        version = call.query.get("api-version", "2024-01-01-preview")
        url = self._twin.site.operation_url(f"mfeOperationsStatus/{operation}", version=version)
        return {"Azure-AsyncOperation": url, "x-ms-async-operation-timeout": "PT1H", **LRO_PACE}

    def operation(self, call: Call) -> Reply:
        operation = call.params["operation"]
        found = self._twin.store.get("operation", operation)
        if found is None:
            raise not_found("Operation", operation)
        body: dict[str, Any] = {"id": call.path, "name": operation, "status": "Succeeded"}
        if "marketplace" in found:
            bought = self._twin.store.get("marketplace", found["marketplace"])
            if bought is not None and marketplace_door.status(bought) != "Subscribed":
                return Reply(body=body | {"status": "InProgress"}, headers=LRO_PACE)
            return Reply(body=body if bought else body | {"status": "Canceled"})
        endpoint = self._twin.store.get("endpoint", found.get("endpoint", ""))
        if endpoint is None:
            body["status"] = "Canceled"
        else:
            match _state(self._twin, endpoint):
                case "Creating":
                    return Reply(body=body | {"status": "InProgress"}, headers=LRO_PACE)
                case "CreationFailed":
                    words = self._twin.speaker.fault()
                    body["status"] = "Failed"
                    body["error"] = {"code": "DeploymentFailed", "message": words, "details": []}
        return Reply(body=body)

    def result(self, call: Call) -> Reply:
        """How far a cancellation or a deletion is."""
        operation = call.params["operation"]
        kind, _, name = operation.partition(":")
        found = self._twin.store.get("operation", operation)
        if kind == "cancel":
            job = self._twin.store.get("job", name.lower())
            going_on = job is not None and job["state"] in LIVE
        elif found is not None:
            going_on = time.time() < found.get("ends", 0)
        else:
            raise not_found("Operation", operation)
        if not going_on:
            return Reply(200)
        version = call.query.get("api-version", "")
        url = f"{self._twin.site.url}{call.path}?api-version={version}"
        return Reply(202, headers={"Location": url, **LRO_PACE})

    def get(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        key = call.params["name"].lower()
        leaving = self._twin.store.get("leaving", key)
        if leaving and time.time() < leaving["ends"] and not self._twin.store.get("endpoint", key):
            return Reply(body=self._shown(leaving["endpoint"], state="Deleting"))
        return Reply(body=self._shown(self._found(call)))

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        found = [self._shown(doc.body) for doc in self._twin.store.list("endpoint")]
        return Reply(body={"value": found, "nextLink": None})

    def delete(self, call: Call) -> Reply:
        """It answers no more and its model is free at once; for a moment it is still shown."""
        self._twin.check_workspace(call.params)
        key = call.params["name"].lower()
        ends = time.time() + _LEAVE_SECONDS
        operation = self._twin.operation_id()
        with self._twin.store.transaction():
            endpoint = self._twin.store.get("endpoint", key)
            if endpoint is None:
                return Reply(204)
            self._twin.store.delete("endpoint", key)
            self._twin.store.put("leaving", key, {"endpoint": endpoint, "ends": ends})
            self._twin.store.put("operation", operation, {"ends": ends})
        version = call.query.get("api-version", "2024-01-01-preview")
        path = f"mfeOperationResults/{operation}"
        url = self._twin.site.operation_url(path, version=version)
        return Reply(202, headers={"Location": url, **LRO_PACE})

    def keys(self, call: Call) -> Reply:
        endpoint = self._found(call)
        return Reply(body={"primaryKey": endpoint["keys"][0], "secondaryKey": endpoint["keys"][1]})

    def regenerate(self, call: Call) -> Reply:
        self._found(call)
        given = call.json()
        which = {"primary": 0, "secondary": 1}.get(str(given.get("keyType", "")).lower())
        if which is None:
            raise user_error("keyType must be Primary or Secondary.", inner="InvalidKeyType")
        wanted = given.get("keyValue")
        if wanted is not None and (not isinstance(wanted, str) or len(wanted) < _KEY_LENGTH):
            raise user_error(
                f"keyValue must be text of at least {_KEY_LENGTH} characters.", inner="InvalidKey"
            )
        with self._twin.store.transaction():  # the other key may be made anew at once
            keys = list(self._found(call)["keys"])
            keys[which] = wanted or self._twin.dice.key()
            self._twin.store.change("endpoint", call.params["name"].lower(), keys=keys)
        return Reply(body={"primaryKey": keys[0], "secondaryKey": keys[1]})

    def _refuse_second(self, name: str, model: Body) -> None:
        for doc in self._twin.store.list("endpoint"):
            if model["version"] is not None and doc.body["model_key"] == model["key"]:
                raise user_error(
                    f"Model {model['name']}:{model['version']} is already deployed as "
                    f"{doc.body['name']}: one deployment for each fine-tuned model.",
                    inner="ModelAlreadyDeployed",
                )
        if self._twin.store.get("endpoint", name.lower()):
            raise conflict(f"Endpoint {name} already exists.")

    def _model(self, model_id: str) -> Body:
        """The model that an id names, if it is served here."""
        site = self._twin.site
        entry, model = served.find_served(self._twin, model_id)
        if site.region not in entry.deploy_regions:
            raise user_error(
                f"{entry.name} : Serverless deployment not supported in {site.region}.",
                inner="ModelNotSupportedByMaaS",
            )
        if entry.is_retired(site.as_of):
            raise user_error(f"{entry.name} was retired on {entry.retired}.", inner="ModelRetired")
        return model

    def _found(self, call: Call) -> Body:
        self._twin.check_workspace(call.params)
        endpoint = self._twin.store.get("endpoint", call.params["name"].lower())
        if endpoint is None:
            raise not_found("Serverless endpoint", call.params["name"])
        return endpoint

    def _shown(self, endpoint: Body, state: str = "") -> dict[str, Any]:
        site, state = self._twin.site, state or _state(self._twin, endpoint)
        return {
            "id": self._twin.arm_id("serverlessEndpoints", endpoint["name"]),
            "name": endpoint["name"],
            "type": "Microsoft.MachineLearningServices/workspaces/serverlessEndpoints",
            "location": site.region,
            "sku": {"name": "Consumption"},
            "tags": {},
            "systemData": system_data(endpoint["created"]),
            "properties": {
                "authMode": "Key",
                "modelSettings": {"modelId": endpoint["model_id"]},
                "endpointState": state,
                "provisioningState": _PROVISIONING[state],
                "inferenceEndpoint": {
                    "uri": site.scoring_uri("serverless", endpoint["name"]),
                    "headers": {},
                },
                "marketplaceSubscriptionId": None,
                "contentSafety": {"contentSafetyStatus": "Enabled"},
            },
        }


def _state(twin: Twin, endpoint: Body) -> str:
    return served.state(twin, "endpoint", endpoint["name"].lower(), endpoint)


def _body(twin: Twin, name: str, model_id: str, model: Body) -> Body:
    return {
        "name": name,
        "model_id": model_id,
        "model_key": model["key"],
        "base_model": model["base_model"],
        "model": served.label(model),
        "keys": [twin.dice.key(), twin.dice.key()],
        "online": False,
        "created": twin.clock.iso(),
        "at": time.time(),
    }
