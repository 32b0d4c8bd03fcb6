"""Registered models: containers and their versions, listed, archived, deleted."""

from __future__ import annotations

from typing import Any

from local_runner.mock_server.doors import asset, model_source
from local_runner.mock_server.errors import conflict, not_found
from local_runner.mock_server.registration import store_uri
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import WORKSPACE, Twin, system_data
from local_runner.mock_server.wire import (
    Call,
    Reply,
    Route,
    archived_wanted,
    check_asset,
    whole_number,
)

_TEXT, _MAP = {"type": ["string", "null"]}, {"type": ["object", "null"]}
_CHANGE = {
    "type": "object",
    "required": ["properties"],
    "properties": {
        "properties": {
            "type": "object",
            "properties": {
                "isArchived": {"type": ["boolean", "null"]},
                "description": _TEXT,
                "tags": _MAP,
                "properties": _MAP,
                "modelUri": _TEXT,
                "modelType": _TEXT,
            },
        }
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    one = f"{WORKSPACE}/models/{{name}}"
    version = f"{one}/versions/{{version}}"
    return [
        Route("GET", f"{WORKSPACE}/models", door.list, call="models.list"),
        Route("GET", one, door.container, quick=True, call="models.archive(name)"),
        Route("PUT", one, door.put_container, call="models.archive(name)", body=_CHANGE),
        Route("GET", f"{one}/versions", door.versions, call="models.get(label)"),
        Route("GET", version, door.get, quick=True, call="models.get"),
        Route("PUT", version, door.put, call="models.create_or_update, archive", body=_CHANGE),
        Route("DELETE", version, door.delete, source="documented", call="az rest"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        names = {
            doc.body["name"].lower(): doc.body["name"] for doc in self._twin.store.list("model")
        }
        wanted = archived_wanted(call.query)
        shown = [self._container(name) for name in names.values()]
        value = [item for item in shown if item["properties"]["isArchived"] in wanted]
        return Reply(body={"value": value, "nextLink": None})

    def container(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        return Reply(body=self._container(call.params["name"]))

    def put_container(self, call: Call) -> Reply:
        """What `models.archive` and `restore` of a whole name send: isArchived, tags, description."""
        self._twin.check_workspace(call.params)
        name, given = call.params["name"], call.properties()
        check_asset(given)
        before = self._container(name)["properties"]
        asset.keep(self._twin, "model", name, given, before)
        return Reply(body=self._container(name))

    def _container(self, name: str) -> dict[str, Any]:
        return asset.container(self._twin, "model", name, route="models", what="Model")

    def versions(self, call: Call) -> Reply:
        """The newest first, as the SDK's label `latest` asks for."""
        self._twin.check_workspace(call.params)
        name = call.params["name"]
        found = self._twin.store.list("model", prefix=f"{name.lower()}/")
        if not found:
            raise not_found("Model", name)
        wanted = archived_wanted(call.query)
        shown = [self._model(doc.body) for doc in found if doc.body["archived"] in wanted]
        top = whole_number(call.query.get("$top"))
        return Reply(body={"value": shown[:top], "nextLink": None})

    def get(self, call: Call) -> Reply:
        return Reply(body=self._model(self._found(call)))

    def put(self, call: Call) -> Reply:
        """A new version, or what `models.archive`, `restore` and an update send of one."""
        self._twin.check_workspace(call.params)
        name, version, given = call.params["name"], call.params["version"], call.properties()
        check_asset(given)
        key = f"{name}/{version}".lower()
        if self._twin.store.get("model", key) is None and given.get("modelUri"):
            made = model_source.make(self._twin, name, version, given)
            with self._twin.store.transaction():
                if self._twin.store.get("model", key) is None:
                    self._twin.store.put("model", key, made)
                    return Reply(201, self._model(made))
            model_source.forget(made)  # two were sent at once
        with self._twin.store.transaction():
            model = self._found(call)
            if not self._is_at(model, given.get("modelUri")):
                raise conflict("Asset paths cannot be updated.")
            for field in ("tags", "description"):
                if field in given:
                    model["properties"][field] = given[field]
            model["archived"] = bool(given.get("isArchived", model["archived"]))
            self._twin.store.put("model", key, model)
        return Reply(200, self._model(model))

    def delete(self, call: Call) -> Reply:
        with self._twin.store.transaction():
            model = self._found(call)
            users = [
                doc.body.get("endpoint", doc.body["name"])
                for kind in ("endpoint", "deployment")
                for doc in self._twin.store.list(kind)
                if doc.body["model_key"] == _key(model)
            ]
            if users:
                raise conflict(
                    f"Model {model['name']}:{model['version']} is in use by endpoint {users[0]}."
                )
            self._twin.store.delete("model", _key(model))
        model_source.forget(model)
        return Reply(200)

    def _is_at(self, model: Body, uri: Any) -> bool:
        """Whether an address is the model's own, in whichever form it is written."""
        own = model["properties"]["modelUri"]
        if uri in (None, own):
            return True
        place = model_source.resolve(self._twin, str(uri))
        whole = store_uri(self._twin.site, place.datastore, place.path)
        return bool(whole.rstrip("/") == own.rstrip("/"))

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


def _key(model: Body) -> str:
    return f"{model['name']}/{model['version']}".lower()
