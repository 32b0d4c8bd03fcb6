"""Marketplace subscriptions: third parties' models are subscribed to, Microsoft's need none."""

from __future__ import annotations

import re
import time
from typing import Any

from local_runner.mock_server.errors import conflict, not_found, user_error
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import LRO_PACE, WORKSPACE, Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route
from maas_client.spec.catalog import find_model

FULFILLMENT_SECONDS = 0.2
"""How long the marketplace takes: real time, for nobody simulates it."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9-]{0,51}")
_API = "2024-01-01-preview"
_BODY = {
    "type": "object",
    "required": ["properties"],
    "properties": {
        "properties": {
            "type": "object",
            "required": ["modelId"],
            "properties": {"modelId": {"type": "string"}},
        }
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    every = f"{WORKSPACE}/marketplaceSubscriptions"
    one, verbs = f"{every}/{{name}}", "marketplace_subscriptions"
    return [
        Route("PUT", one, door.put, call=f"{verbs}.begin_create_or_update", body=_BODY),
        Route("GET", one, door.get, quick=True, call=f"{verbs}.get"),
        Route("GET", every, door.list, call=f"{verbs}.list"),
        Route("DELETE", one, door.delete, call=f"{verbs}.begin_delete"),
    ]


def status(body: Body) -> str:
    """How far the marketplace is with a subscription."""
    young = time.time() - body["at"] < FULFILLMENT_SECONDS
    return "PendingFulfillmentStart" if young else "Subscribed"


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def put(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, given = call.params["name"], str(call.properties().get("modelId", ""))
        if not _NAME.fullmatch(name):
            raise user_error(
                f"{name!r} is not a subscription name: 1 to 52 letters, digits and '-'.",
                inner="InvalidSubscriptionName",
            )
        model = _third_party(given)
        key = name.lower()
        with self._twin.store.transaction():
            before = self._twin.store.get("marketplace", key)
            if before and before["model"].lower() != model.lower():
                raise conflict(f"Marketplace subscription {name} is for {before['model']}.")
            made = {"created": self._twin.clock.iso(), "at": time.time()}
            body = before or {"name": name, "model": model, **made}
            self._twin.store.put("marketplace", key, body)
            operation = self._twin.operation_id()
            self._twin.store.put("operation", operation, {"marketplace": key})
        url = self._url(call, f"mfeOperationsStatus/{operation}")
        headers = {"Azure-AsyncOperation": url, "x-ms-async-operation-timeout": "PT1H", **LRO_PACE}
        return Reply(200 if before else 201, self._shown(body), headers)

    def get(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        body = self._twin.store.get("marketplace", call.params["name"].lower())
        if body is None:
            raise not_found("Marketplace subscription", call.params["name"])
        return Reply(body=self._shown(body))

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        found = [self._shown(doc.body) for doc in self._twin.store.list("marketplace")]
        return Reply(body={"value": found, "nextLink": None})

    def delete(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        if not self._twin.store.delete("marketplace", call.params["name"].lower()):
            return Reply(204)
        operation = self._twin.operation_id()
        ends = time.time() + FULFILLMENT_SECONDS
        self._twin.store.put("operation", operation, {"ends": ends})
        url = self._url(call, f"mfeOperationResults/{operation}")
        return Reply(202, headers={"Location": url, **LRO_PACE})

    def _url(self, call: Call, operation: str) -> str:
        version = call.query.get("api-version", _API)
        return self._twin.site.operation_url(operation, version=version)

    def _shown(self, body: Body) -> dict[str, Any]:
        plan = body["model"].rpartition("/")[2].lower()
        now = status(body)
        return {
            "id": self._twin.arm_id("marketplaceSubscriptions", body["name"]),
            "name": body["name"],
            "type": "Microsoft.MachineLearningServices/workspaces/marketplaceSubscriptions",
            "systemData": system_data(body["created"]),
            "properties": {
                "modelId": body["model"],
                "marketplacePlan": {"publisherId": "third-party", "offerId": plan, "planId": plan},
                "marketplaceSubscriptionStatus": now,
                "provisioningState": "Succeeded" if now == "Subscribed" else "Creating",
            },
        }


def _third_party(given: str) -> str:
    """The model's id, if it is one that somebody sells.

    Raises:
        ServiceError: it is no model of a registry, or one of Microsoft's.
    """
    found = re.fullmatch(r"azureml://registries/([^/]+)/models/([^/]+)(/versions/[^/]+)?", given)
    if found is None:
        raise user_error(f"modelId {given!r} is not a model of a registry.", inner="InvalidModelId")
    if found[3]:
        raise user_error(
            f"modelId {given!r} names a version: a subscription is for every version.",
            inner="InvalidModelId",
        )
    if (
        find_model(found[2])
        or found[1].lower().startswith("azureml-phi")
        or (found[1].lower() == "azureml")
    ):
        raise user_error(
            f"{found[2]} is a Microsoft model: it needs no marketplace subscription.",
            inner="MarketplaceSubscriptionNotSupported",
        )
    return given
