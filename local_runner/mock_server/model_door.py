"""Registered models, and marketplace subscriptions."""

from __future__ import annotations

import re
from typing import Any

from local_runner.mock_server.errors import conflict, not_found, user_error
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import LRO_PACE, WORKSPACE, Twin, system_data
from local_runner.mock_server.wire import Call, Reply, Route, whole_number
from maas_client.spec.catalog import find_model


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    subscription = f"{WORKSPACE}/marketplaceSubscriptions"
    return [
        Route("GET", f"{WORKSPACE}/models", door.list),
        Route("GET", f"{WORKSPACE}/models/{{name}}", door.container),
        Route("GET", f"{WORKSPACE}/models/{{name}}/versions", door.versions),
        Route("GET", f"{WORKSPACE}/models/{{name}}/versions/{{version}}", door.get),
        Route("PUT", f"{WORKSPACE}/models/{{name}}/versions/{{version}}", door.put),
        Route("DELETE", f"{WORKSPACE}/models/{{name}}/versions/{{version}}", door.delete),
        Route("PUT", f"{subscription}/{{name}}", door.subscribe),
        Route("GET", f"{subscription}/{{name}}", door.subscription),
        Route("GET", subscription, door.subscriptions),
        Route("DELETE", f"{subscription}/{{name}}", door.unsubscribe),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        names = {
            doc.body["name"].lower(): doc.body["name"] for doc in self._twin.store.list("model")
        }
        return Reply(
            body={"value": [self._container(name) for name in names.values()], "nextLink": None}
        )

    def container(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        return Reply(body=self._container(call.params["name"]))

    def _container(self, name: str) -> dict[str, Any]:
        found = self._twin.store.list("model", prefix=f"{name.lower()}/")
        if not found:
            raise not_found("Model", name)
        return {
            "id": self._twin.arm_id("models", found[0].body["name"]),
            "name": found[0].body["name"],
            "systemData": system_data(found[-1].body["created"]),
            "properties": {
                "latestVersion": found[0].body["version"],
                "nextVersion": str(len(found) + 1),
                "isArchived": found[0].body["archived"],
                "tags": {},
                "properties": {},
            },
        }

    def versions(self, call: Call) -> Reply:
        """The newest first, as the SDK's label `latest` asks for."""
        self._twin.check_workspace(call.params)
        name = call.params["name"]
        found = self._twin.store.list("model", prefix=f"{name.lower()}/")
        if not found:
            raise not_found("Model", name)
        view = call.query.get("listViewType", "ActiveOnly").lower()
        wanted = {"activeonly": (False,), "archivedonly": (True,)}.get(view, (False, True))
        shown = [self._model(doc.body) for doc in found if doc.body["archived"] in wanted]
        top = whole_number(call.query.get("$top"))
        return Reply(body={"value": shown[:top], "nextLink": None})

    def get(self, call: Call) -> Reply:
        return Reply(body=self._model(self._found(call)))

    def put(self, call: Call) -> Reply:
        """What `models.archive`, `restore` and an update send: tags, description, isArchived."""
        model, given = self._found(call), call.properties()
        if given.get("modelUri") not in (None, model["properties"]["modelUri"]):
            raise conflict("Asset paths cannot be updated.")
        for key in ("tags", "description"):
            if key in given:
                model["properties"][key] = given[key]
        model["archived"] = bool(given.get("isArchived", model["archived"]))
        self._twin.store.put("model", _key(model), model)
        return Reply(200, self._model(model))

    def delete(self, call: Call) -> Reply:
        model = self._found(call)
        users = [
            doc.body["name"]
            for doc in self._twin.store.list("endpoint")
            if doc.body["model_key"] == _key(model)
        ]
        if users:
            raise conflict(
                f"Model {model['name']}:{model['version']} is in use by endpoint {users[0]}."
            )
        self._twin.store.delete("model", _key(model))
        return Reply(200)

    def _found(self, call: Call) -> Body:
        self._twin.check_workspace(call.params)
        name, version = call.params["name"], call.params["version"]
        model = self._twin.store.get("model", f"{name}/{version}".lower())
        if model is None:
            raise not_found("Model", f"{name}:{version}")
        return model

    def _model(self, model: Body) -> dict[str, Any]:
        return {
            "id": self._twin.arm_id("models", model["name"], "versions", model["version"]),
            "name": model["version"],
            "type": "Microsoft.MachineLearningServices/workspaces/models/versions",
            "systemData": system_data(model["created"]),
            "properties": {**model["properties"], "isArchived": model["archived"]},
        }

    def subscribe(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        given = str(call.properties().get("modelId", ""))
        name = re.search(r"/models/([^/]+)", given)
        if name is None:
            raise user_error(
                f"modelId {given!r} is not a model of a registry.", inner="InvalidModelId"
            )
        if find_model(name[1]) or "/registries/azureml/" in given.lower():
            raise user_error(
                f"{name[1]} is a Microsoft model: it needs no marketplace subscription.",
                inner="MarketplaceSubscriptionNotSupported",
            )
        key = call.params["name"].lower()
        before = self._twin.store.get("marketplace", key)
        body = before or {
            "name": call.params["name"],
            "model": given,
            "created": self._twin.clock.iso(),
        }
        self._twin.store.put("marketplace", key, body)
        return Reply(200 if before else 201, self._subscription(body), LRO_PACE)

    def subscription(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        body = self._twin.store.get("marketplace", call.params["name"].lower())
        if body is None:
            raise not_found("Marketplace subscription", call.params["name"])
        return Reply(body=self._subscription(body))

    def subscriptions(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        found = [self._subscription(doc.body) for doc in self._twin.store.list("marketplace")]
        return Reply(body={"value": found, "nextLink": None})

    def unsubscribe(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        if not self._twin.store.delete("marketplace", call.params["name"].lower()):
            return Reply(204)
        return Reply(200)

    def _subscription(self, body: Body) -> dict[str, Any]:
        plan = body["model"].rpartition("/")[2].lower()
        return {
            "id": self._twin.arm_id("marketplaceSubscriptions", body["name"]),
            "name": body["name"],
            "type": "Microsoft.MachineLearningServices/workspaces/marketplaceSubscriptions",
            "systemData": system_data(body["created"]),
            "properties": {
                "modelId": body["model"],
                "marketplacePlan": {"publisherId": "third-party", "offerId": plan, "planId": plan},
                "marketplaceSubscriptionStatus": "Subscribed",
                "provisioningState": "Succeeded",
            },
        }


def _key(model: Body) -> str:
    return f"{model['name']}/{model['version']}".lower()
