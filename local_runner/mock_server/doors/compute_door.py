"""Compute clusters: made, shown, deleted; their nodes; and the sizes and quotas of a region."""

from __future__ import annotations

import re
from typing import Any

from local_runner.mock_server.credentials import TENANT
from local_runner.mock_server.doors.managed import compute_name, find_compute
from local_runner.mock_server.doors.sizes import find_size
from local_runner.mock_server.errors import ServiceError, conflict, user_error
from local_runner.mock_server.lifecycle import LIVE
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import LRO_PACE, WORKSPACE, Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route, part
from maas_client.spec.sizes import SIZES, Size

_NAME = re.compile(r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{0,30}[a-zA-Z0-9]")
_LOCATION = "/subscriptions/{sub}/providers/Microsoft.MachineLearningServices/locations/{region}"
_PRIORITIES = {"dedicated": "Dedicated", "lowpriority": "LowPriority"}
_KINDS = ("AmlCompute", "ComputeInstance", "Kubernetes", "VirtualMachine", "SynapseSpark")
_MOST_NODES = 100
_FAMILY_CPUS = 1000
"""vCPUs of each family that the region allows: a round number of ours."""
_COMPUTE = {
    "type": "object",
    "required": ["location", "properties"],
    "properties": {
        "location": {"type": "string"},
        "tags": {"type": ["object", "null"]},
        "properties": {
            "type": "object",
            "required": ["computeType"],
            "properties": {
                "computeType": {"enum": list(_KINDS)},
                "properties": {
                    "type": "object",
                    "properties": {
                        "vmSize": {"type": "string"},
                        "vmPriority": {"type": "string"},
                        "scaleSettings": {"type": "object"},
                    },
                },
            },
        },
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    every = f"{WORKSPACE}/computes"
    one = f"{every}/{{name}}"
    operation = f"{_LOCATION}/computeOperationsStatus/{{operation}}"
    return [
        Route("PUT", one, door.put, call="compute.begin_create_or_update", body=_COMPUTE),
        Route("GET", one, door.get, quick=True, call="compute.get"),
        Route("GET", every, door.list, call="compute.list"),
        Route("DELETE", one, door.delete, call="compute.begin_delete"),
        Route("POST", f"{one}/listNodes", door.nodes, call="compute.list_nodes"),
        Route("GET", f"{_LOCATION}/vmSizes", door.sizes, quick=True, call="compute.list_sizes"),
        Route("GET", f"{_LOCATION}/usages", door.usages, quick=True, call="compute.list_usage"),
        Route("GET", operation, door.operation, source="documented", call="LROPoller.result"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def put(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, body, given = call.params["name"], call.json(), call.properties()
        if not _NAME.fullmatch(name):
            raise user_error(
                f"{name!r} is not a compute's name: 2 to 32 letters, digits and single '-', a "
                "letter first.",
                inner="InvalidComputeName",
            )
        made = _settings(self._twin, given)
        with self._twin.store.transaction():
            before = self._twin.store.get("compute", name.lower())
            if before is not None and before["size"] != made["size"]:
                raise conflict(f"Compute {name} exists: its VM size cannot be changed.")
            compute = {
                "name": before["name"] if before else name,
                "created": before["created"] if before else self._twin.clock.iso(),
                "changed": self._twin.clock.iso(),
                "identity": self._identity(part(body, "identity")),
                "tags": part(body, "tags"),
                **made,
            }
            self._twin.store.put("compute", name.lower(), compute)
        return Reply(200 if before else 201, self._shown(compute), self._operation(call))

    def get(self, call: Call) -> Reply:
        return Reply(body=self._shown(self._found(call)))

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        found = [self._shown(doc.body) for doc in self._twin.store.list("compute")]
        return Reply(body={"value": found, "nextLink": None})

    def delete(self, call: Call) -> Reply:
        compute = self._found(call)
        if users := _users(self._twin, compute):
            raise conflict(f"Compute {compute['name']} is in use by job {users[0]['name']}.")
        self._twin.store.delete("compute", compute["name"].lower())
        headers = self._operation(call)
        return Reply(202, headers={"Location": headers["Azure-AsyncOperation"], **headers})

    def nodes(self, call: Call) -> Reply:
        compute = self._found(call)
        nodes = [
            {
                "nodeId": f"tvmps_{job['identity'].replace('-', '')}_p",
                "privateIpAddress": f"10.0.0.{place}",
                "publicIpAddress": None,
                "port": 50000 + place,
                "nodeState": "running",
                "runId": job["name"],
            }
            for place, job in enumerate(_running(self._twin, compute), 4)
        ]
        return Reply(body={"nodes": nodes, "nextLink": None})

    def sizes(self, call: Call) -> Reply:
        shown = [_size(size) for size in SIZES.values()]
        return Reply(body={"value": shown, "nextLink": None})

    def usages(self, call: Call) -> Reply:
        used: dict[str, int] = {size.family: 0 for size in SIZES.values()}
        for doc in self._twin.store.list("compute"):
            size = SIZES[doc.body["size"].lower()]
            used[size.family] += size.cpus * len(_running(self._twin, doc.body))
        region = self._twin.site.region
        kind = "Microsoft.MachineLearningServices"
        shown = [
            {
                "id": f"/subscriptions/{call.params['sub']}/providers/{kind}"
                f"/locations/{region}/usages/{family}",
                "amlWorkspaceLocation": region,
                "type": f"{kind}/vmFamily/usages",
                "unit": "Count",
                "currentValue": count,
                "limit": _FAMILY_CPUS,
                "name": {"value": family, "localizedValue": family},
            }
            for family, count in used.items()
        ]
        return Reply(body={"value": shown, "nextLink": None})

    def operation(self, call: Call) -> Reply:
        operation = call.params["operation"]
        return Reply(body={"id": call.path, "name": operation, "status": "Succeeded"})

    def _identity(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """Who the cluster is: what it asks to be, with an id where the service gives one."""
        if "SystemAssigned" not in str(given.get("type", "")):
            return given or None
        return given | {"principalId": self._twin.dice.uuid(), "tenantId": TENANT}

    def _operation(self, call: Call) -> dict[str, str]:
        version = call.query.get("api-version", "2024-04-01")
        path = f"computeOperationsStatus/{self._twin.dice.uuid()}"
        url = self._twin.site.operation_url(path, version=version)
        return {"Azure-AsyncOperation": url, **LRO_PACE}

    def _found(self, call: Call) -> Body:
        self._twin.check_workspace(call.params)
        return find_compute(self._twin, call.params["name"])

    def _shown(self, compute: Body) -> dict[str, Any]:
        site, busy = self._twin.site, len(_running(self._twin, compute))
        nodes = max(busy, compute["least"])
        return {
            "id": self._twin.arm_id("computes", compute["name"]),
            "name": compute["name"],
            "type": "Microsoft.MachineLearningServices/workspaces/computes",
            "location": site.region,
            "identity": compute["identity"],
            "tags": compute["tags"],
            "systemData": system_data(compute["created"], compute["changed"]),
            "properties": {
                "description": compute["description"],
                "computeType": "AmlCompute",
                "computeLocation": site.region,
                "resourceId": None,
                "createdOn": compute["created"],
                "modifiedOn": compute["changed"],
                "disableLocalAuth": compute["no_ssh"],
                "isAttachedCompute": False,
                "provisioningState": "Succeeded",
                "provisioningErrors": None,
                "properties": {
                    "vmSize": compute["size"].upper(),
                    "vmPriority": compute["priority"],
                    "osType": "Linux",
                    "scaleSettings": {
                        "minNodeCount": compute["least"],
                        "maxNodeCount": compute["most"],
                        "nodeIdleTimeBeforeScaleDown": compute["idle"],
                    },
                    "allocationState": "Steady",
                    "allocationStateTransitionTime": compute["changed"],
                    "currentNodeCount": nodes,
                    "targetNodeCount": nodes,
                    "nodeStateCounts": _states(busy, nodes - busy),
                    "errors": None,
                    "subnet": None,
                    "virtualMachineImage": None,
                    "remoteLoginPortPublicAccess": "NotSpecified",
                    "enableNodePublicIp": True,
                    "isolatedNetwork": False,
                    "propertyBag": {},
                },
            },
        }


def _settings(twin: Twin, given: dict[str, Any]) -> Body:
    """What the request asks for, checked."""
    if given.get("computeType") != "AmlCompute":
        raise user_error(
            f"computeType {given.get('computeType')!r} is not served by the mock; AmlCompute is.",
            inner="UnsupportedComputeType",
        )
    wanted = part(given, "properties")
    size = find_size(str(wanted.get("vmSize", "")), twin.site.region)
    priority = _PRIORITIES.get(str(wanted.get("vmPriority") or "Dedicated").lower())
    if priority is None:
        raise user_error("vmPriority must be Dedicated or LowPriority.", inner="InvalidVmPriority")
    scale = part(wanted, "scaleSettings")
    least, most = _count(scale, "minNodeCount", 0), _count(scale, "maxNodeCount", 4)
    if least > most:
        raise _out_of_range(f"minNodeCount is {least}, more than maxNodeCount, which is {most}.")
    return {
        "description": given.get("description"),
        "no_ssh": bool(given.get("disableLocalAuth", True)),
        "size": size.name,
        "priority": priority,
        "least": least,
        "most": most,
        "idle": str(scale.get("nodeIdleTimeBeforeScaleDown") or "PT120S"),
    }


def _count(scale: dict[str, Any], key: str, default: int) -> int:
    value = scale.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_NODES:
        raise _out_of_range(f"{key} must be a whole number from 0 to {_MOST_NODES}.")
    return value


def _out_of_range(message: str) -> ServiceError:
    return user_error(message, inner="InvalidScaleSettings")


def _users(twin: Twin, compute: Body) -> list[Body]:
    """The jobs on the cluster that are not over."""
    live = (doc.body for doc in twin.store.list("job", states=LIVE))
    name = compute["name"].lower()
    return [job for job in live if compute_name(job["spec"].get("compute")).lower() == name]


def _running(twin: Twin, compute: Body) -> list[Body]:
    """The jobs that hold a node each."""
    held = [job for job in _users(twin, compute) if job["state"] != "Queued"]
    return held[: compute["most"]]


def _states(busy: int, idle: int) -> dict[str, int]:
    counts = {"runningNodeCount": busy, "idleNodeCount": idle}
    others = ("preparing", "unusable", "leaving", "preempted")
    return counts | {f"{word}NodeCount": 0 for word in others}


def _size(size: Size) -> dict[str, Any]:
    return {
        "name": size.name,
        "family": size.family,
        "vCPUs": size.cpus,
        "gpus": size.gpus,
        "memoryGB": size.memory,
        "osVhdSizeMB": 1_047_552,
        "maxResourceVolumeMB": size.memory * 2048,
        "lowPriorityCapable": True,
        "premiumIO": True,
        "estimatedVMPrices": None,
        "supportedComputeTypes": ["AmlCompute", "ComputeInstance"],
    }
