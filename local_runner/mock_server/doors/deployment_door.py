"""Deployments at managed online endpoints: made, shown, logged, deleted; and how far that is."""

from __future__ import annotations

import time
from typing import Any

from local_runner.mock_server.doors import served
from local_runner.mock_server.doors.online_door import NAME, ONLINE, begun, find_endpoint
from local_runner.mock_server.doors.sizes import check_deployment
from local_runner.mock_server.errors import not_found, user_error
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import LRO_PACE, Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route, part, whole_number

_OPERATION = (
    "/subscriptions/{sub}/providers/Microsoft.MachineLearningServices/locations/{region}"
    "/mfeOperationsStatus/odidp:{operation}"
)
_PROVISIONING = {"Online": "Succeeded", "Creating": "Creating", "CreationFailed": "Failed"}
_MOST_INSTANCES, _MOST_LINES = 20, 5000
_PROBE = {
    "initialDelay": "PT10S",
    "period": "PT10S",
    "timeout": "PT2S",
    "successThreshold": 1,
    "failureThreshold": 30,
}
_SETTINGS = {
    "requestSettings": {
        "requestTimeout": "PT5S",
        "maxConcurrentRequestsPerInstance": 1,
        "maxQueueWait": "PT0.5S",
    },
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
}
"""What the service documents for whoever says nothing."""
_ECHOED = (
    "description", "environmentId", "environmentVariables", "codeConfiguration", "modelMountPath",
    "dataCollector",
)  # fmt: skip
_TEXT, _MAP = {"type": ["string", "null"]}, {"type": ["object", "null"]}
_DEPLOYMENT = {
    "type": "object",
    "required": ["location", "properties"],
    "properties": {
        "location": {"type": "string"},
        "sku": {"type": "object", "properties": {"capacity": {"type": ["integer", "null"]}}},
        "tags": _MAP,
        "properties": {
            "type": "object",
            "required": ["endpointComputeType", "model"],
            "properties": {
                "endpointComputeType": {"enum": ["Managed"]},
                "model": {"type": "string"},
                "instanceType": _TEXT,
                "scaleSettings": _MAP,
                "requestSettings": _MAP,
                "livenessProbe": _MAP,
                "readinessProbe": _MAP,
            },
        },
    },
}
_LOGS = {
    "type": "object",
    "properties": {"containerType": _TEXT, "tail": {"type": ["integer", "null"], "minimum": 0}},
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    every, verbs = f"{ONLINE}/{{name}}/deployments", "online_deployments"
    one = f"{every}/{{deployment}}"
    return [
        Route("PUT", one, door.put, call=f"{verbs}.begin_create_or_update", body=_DEPLOYMENT),
        Route("GET", one, door.get, call=f"{verbs}.get"),
        Route("GET", every, door.list, call=f"{verbs}.list"),
        Route("DELETE", one, door.delete, call=f"{verbs}.begin_delete"),
        Route("POST", f"{one}/getLogs", door.logs, call=f"{verbs}.get_logs", body=_LOGS),
        Route("GET", _OPERATION, door.operation, call="LROPoller.result"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def put(self, call: Call) -> Reply:
        endpoint = find_endpoint(self._twin, call.params)
        name, body, given = call.params["deployment"], call.json(), call.properties()
        if not NAME.fullmatch(name):
            raise user_error(
                f"{name!r} is not a deployment name: 3 to 32 letters, digits and '-', a letter first.",
                inner="InvalidDeploymentName",
            )
        if given.get("endpointComputeType", "Managed") != "Managed":
            raise user_error("endpointComputeType must be Managed.", inner="InvalidComputeType")
        key = f"{endpoint['name']}/{name}".lower()
        with self._twin.store.transaction():
            find_endpoint(self._twin, call.params)  # nobody deletes it, or its model, any more
            made = _wanted(self._twin, given, body)
            before = self._twin.store.get("deployment", key)
            same = before is not None and before["model_key"] == made["model_key"]
            deployment = made | {
                "name": before["name"] if before else name,
                "endpoint": endpoint["name"],
                "created": before["created"] if before else self._twin.clock.iso(),
                "online": bool(before and same and before["online"]),
                "at": before["at"] if before and same else time.time(),
            }
            self._twin.store.put("deployment", key, deployment)
        if not deployment["online"]:
            self._twin.speaker.warm_up(deployment["base_model"])
        headers = begun(self._twin, call, {"deployment": key})
        return Reply(200 if before else 201, self._shown(deployment), headers)

    def get(self, call: Call) -> Reply:
        return Reply(body=self._shown(self._found(call)))

    def list(self, call: Call) -> Reply:
        endpoint = find_endpoint(self._twin, call.params)
        prefix = f"{endpoint['name'].lower()}/"
        found = self._twin.store.list("deployment", prefix=prefix)
        return Reply(body={"value": [self._shown(doc.body) for doc in found], "nextLink": None})

    def delete(self, call: Call) -> Reply:
        endpoint, name = find_endpoint(self._twin, call.params), call.params["deployment"]
        traffic = {key.lower(): share for key, share in endpoint["traffic"].items()}
        if share := traffic.get(name.lower()):
            raise user_error(
                f"Deployment {name} gets {share} % of the traffic of endpoint {endpoint['name']}. "
                "Give it none, then delete it.",
                inner="DeploymentHasTraffic",
            )
        if not self._twin.store.delete("deployment", f"{endpoint['name']}/{name}".lower()):
            return Reply(204)
        headers = begun(self._twin, call, {})
        return Reply(202, headers={"Location": headers["Azure-AsyncOperation"], **headers})

    def logs(self, call: Call) -> Reply:
        deployment = self._found(call)
        most = whole_number(str(call.json().get("tail") or _MOST_LINES))
        lines = [
            "Instance status:",
            "SystemSetup: Succeeded",
            "UserContainerImagePull: Succeeded",
            "ModelDownload: Succeeded",
            "UserContainerStart: Succeeded",
            "",
            f"{deployment['created']} The mock serves {deployment['model']}"
            f" on {deployment['base_model']}.",
        ]
        return Reply(body={"content": "\n".join(lines[-(most or _MOST_LINES) :]) + "\n"})

    def operation(self, call: Call) -> Reply:
        """How far a deployment is; everything else was done at once."""
        name = f"odidp:{call.params['operation']}"
        found = self._twin.store.get("operation", name)
        if found is None:
            raise not_found("Operation", name)
        body: dict[str, Any] = {"id": call.path, "name": name, "status": "Succeeded"}
        if "deployment" not in found:
            return Reply(body=body)
        deployment = self._twin.store.get("deployment", found["deployment"])
        if deployment is None:
            return Reply(body=body | {"status": "Canceled"})
        match self._state(deployment):
            case "Creating":
                return Reply(body=body | {"status": "InProgress"}, headers=LRO_PACE)
            case "CreationFailed":
                words = self._twin.speaker.fault()
                body["status"] = "Failed"
                body["error"] = {"code": "DeploymentFailed", "message": words, "details": []}
        return Reply(body=body)

    def _found(self, call: Call) -> Body:
        endpoint, name = find_endpoint(self._twin, call.params), call.params["deployment"]
        found = self._twin.store.get("deployment", f"{endpoint['name']}/{name}".lower())
        if found is None:
            raise not_found("Online deployment", f"{endpoint['name']}/{name}")
        return found

    def _state(self, deployment: Body) -> str:
        key = f"{deployment['endpoint']}/{deployment['name']}".lower()
        return served.state(self._twin, "deployment", key, deployment)

    def _shown(self, deployment: Body) -> dict[str, Any]:
        place = ("onlineEndpoints", deployment["endpoint"], "deployments", deployment["name"])
        given = deployment["given"]
        kind = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments"
        return {
            "id": self._twin.arm_id(*place),
            "name": deployment["name"],
            "type": kind,
            "location": self._twin.site.region,
            "kind": "Managed",
            "identity": None,
            "sku": {"name": "Default", "tier": "Standard", "capacity": deployment["instances"]},
            "tags": deployment["tags"],
            "systemData": system_data(deployment["created"]),
            "properties": {
                **{key: given.get(key) for key in _ECHOED},
                **{
                    key: known | {k: v for k, v in part(given, key).items() if v is not None}
                    for key, known in _SETTINGS.items()
                },
                "endpointComputeType": "Managed",
                "model": deployment["model_id"],
                "instanceType": deployment["size"],
                "properties": part(given, "properties"),
                "scaleSettings": {"scaleType": "Default"},
                "appInsightsEnabled": bool(given.get("appInsightsEnabled")),
                "egressPublicNetworkAccess": given.get("egressPublicNetworkAccess") or "Enabled",
                "provisioningState": _PROVISIONING[self._state(deployment)],
            },
        }


def _wanted(twin: Twin, given: dict[str, Any], body: dict[str, Any]) -> Body:
    """What the request asks for, checked."""
    for key in (*_SETTINGS, "properties"):
        part(given, key)
    if not given.get("model"):
        raise user_error("The mock deploys models: model is required.", inner="MissingModel")
    model_id = str(given["model"])
    entry, model = served.find_served(twin, model_id)
    if entry.is_retired(twin.site.as_of):
        raise user_error(f"{entry.name} was retired on {entry.retired}.", inner="ModelRetired")
    size = given.get("instanceType")
    if not isinstance(size, str) or not size:
        raise user_error("instanceType is required.", inner="MissingInstanceType")
    check_deployment(entry.inference_skus or entry.finetune_skus, entry.name, size)
    return {
        "model_id": model_id,
        "model_key": model["key"],
        "model": served.label(model),
        "base_model": model["base_model"],
        "size": size,
        "instances": _instances(body),
        "tags": part(body, "tags"),
        "given": given,
    }


def _instances(body: dict[str, Any]) -> int:
    count = part(body, "sku").get("capacity")
    count = 1 if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_INSTANCES:
        raise user_error(
            f"sku.capacity must be a whole number from 1 to {_MOST_INSTANCES}.",
            inner="InvalidInstanceCount",
        )
    return count
