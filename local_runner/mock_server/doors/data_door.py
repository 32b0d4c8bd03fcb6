"""Data assets: containers and their versions, made, listed, archived."""

from __future__ import annotations

import re
from typing import Any

from local_runner.mock_server.doors import asset
from local_runner.mock_server.errors import conflict, not_found, user_error
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
from maas_client.spec.job import NAME

_TYPES = ("uri_file", "uri_folder", "mltable")
_VERSION = {
    "type": "object",
    "required": ["properties"],
    "properties": {
        "properties": {
            "type": "object",
            "required": ["dataUri", "dataType"],
            "properties": {
                "dataUri": {"type": "string", "minLength": 1},
                "dataType": {"enum": [*_TYPES]},
                "isArchived": {"type": ["boolean", "null"]},
                "description": {"type": ["string", "null"]},
                "tags": {"type": ["object", "null"]},
                "properties": {"type": ["object", "null"]},
            },
        }
    },
}
_CONTAINER = {
    "type": "object",
    "required": ["properties"],
    "properties": {
        "properties": {
            "type": "object",
            "properties": {
                "dataType": {"enum": [*_TYPES]},
                "isArchived": {"type": ["boolean", "null"]},
                "description": {"type": ["string", "null"]},
                "tags": {"type": ["object", "null"]},
            },
        }
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door = _Door(twin)
    one = f"{WORKSPACE}/data/{{name}}"
    version = f"{one}/versions/{{version}}"
    return [
        Route("GET", f"{WORKSPACE}/data", door.list, call="data.list"),
        Route("GET", one, door.container, quick=True, call="data.get(label)"),
        Route("PUT", one, door.put_container, call="data.archive(name)", body=_CONTAINER),
        Route("GET", f"{one}/versions", door.versions, call="data.list(name)"),
        Route("GET", version, door.get, quick=True, call="data.get"),
        Route("PUT", version, door.put, call="data.create_or_update", body=_VERSION),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def list(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        names = dict.fromkeys(doc.body["name"].lower() for doc in self._twin.store.list("data"))
        wanted = archived_wanted(call.query)
        shown = [self._container(name) for name in names]
        value = [item for item in shown if item["properties"]["isArchived"] in wanted]
        return Reply(body={"value": value, "nextLink": None})

    def container(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        return Reply(body=self._container(call.params["name"]))

    def put_container(self, call: Call) -> Reply:
        """What `data.archive` and `restore` of a whole name send: isArchived, tags, description."""
        self._twin.check_workspace(call.params)
        name, given = call.params["name"], call.properties()
        check_asset(given)
        before = self._container(name)["properties"]
        kind = given.get("dataType", before["dataType"])
        if kind != before["dataType"]:
            raise conflict(f"Data asset {name} is a {before['dataType']}, not a {kind}.")
        asset.keep(self._twin, "data", name, given, before)
        return Reply(body=self._container(name))

    def _container(self, name: str) -> dict[str, Any]:
        shown = asset.container(self._twin, "data", name, route="data", what="Data asset")
        newest = self._twin.store.list("data", prefix=f"{name.lower()}/", limit=1)[0].body
        shown["properties"]["dataType"] = newest["properties"]["dataType"]
        return shown

    def versions(self, call: Call) -> Reply:
        """The newest first."""
        self._twin.check_workspace(call.params)
        found = self._twin.store.list("data", prefix=f"{call.params['name'].lower()}/")
        wanted = archived_wanted(call.query)
        shown = [self._shown(doc.body) for doc in found]
        value = [item for item in shown if item["properties"]["isArchived"] in wanted]
        top = whole_number(call.query.get("$top"))
        return Reply(body={"value": value[:top], "nextLink": None})

    def get(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, version = call.params["name"], call.params["version"]
        body = self._twin.store.get("data", f"{name}/{version}".lower())
        if body is None:
            raise not_found("Data version", f"{name}:{version}")
        return Reply(body=self._shown(body))

    def put(self, call: Call) -> Reply:
        self._twin.check_workspace(call.params)
        name, version = call.params["name"], call.params["version"]
        given = call.properties()
        check_asset(given)
        for word, text in (("name", name), ("version", version)):
            if not NAME.fullmatch(text):
                raise user_error(f"{text!r} is not a {word} of an asset.", inner="InvalidAssetName")
        if not isinstance(given.get("dataUri"), str) or not given["dataUri"]:
            raise user_error("dataUri is required.", inner="MissingDataUri")
        if given.get("dataType") not in _TYPES:
            raise user_error(
                f"dataType must be one of {', '.join(_TYPES)}.", inner="InvalidDataType"
            )
        key = f"{name}/{version}".lower()
        with self._twin.store.transaction():
            before = self._twin.store.get("data", key)
            if before and _short(before["properties"]["dataUri"]) != _short(given["dataUri"]):
                raise conflict(
                    f"Asset paths cannot be updated. {name}:{version} already has another dataUri."
                )
            created = before["created"] if before else self._twin.clock.iso()
            body = {"name": name, "version": version, "created": created, "properties": given}
            self._twin.store.put("data", key, body)
        return Reply(200 if before else 201, self._shown(body))

    def _shown(self, body: Body) -> dict[str, Any]:
        given = {key: value for key, value in body["properties"].items() if value is not None}
        return {
            "id": self._twin.arm_id("data", body["name"], "versions", body["version"]),
            "name": body["version"],
            "type": "Microsoft.MachineLearningServices/workspaces/data/versions",
            "systemData": system_data(body["created"]),
            "properties": {
                "description": None,
                "tags": {},
                "properties": {},
                "isArchived": False,
                "isAnonymous": False,
                **given,
            },
        }


def _short(uri: str) -> str:
    """The form without the workspace: both name the same place."""
    return re.sub(r"^azureml://subscriptions/.+?/workspaces/[^/]+/", "azureml://", uri)
