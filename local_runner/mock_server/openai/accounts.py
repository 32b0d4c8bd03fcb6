"""Deployments of the account: the names under which Azure's doors answer, and the models behind them."""

from __future__ import annotations

import time
from typing import Any

from local_runner.mock_server.doors import served
from local_runner.mock_server.openai import models
from local_runner.mock_server.openai.access import invalid
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin

KIND = "openai-deployment"


def deploy(twin: Twin, name: str, model: str, given: dict[str, Any]) -> tuple[Body, bool]:
    """Serve a model under a name; also says whether the name is new.

    Raises:
        ServiceError: nobody can answer with the model.
    """
    key = name.lower()
    with twin.store.transaction():  # nobody deletes the model meanwhile
        found = models.find(twin, model)
        before = twin.store.get(KIND, key)
        same = before is not None and before["model"] == found.name
        now = twin.clock.iso()
        deployment = {
            "name": before["name"] if before else name,
            "model": found.name,
            "base_model": found.base,
            "given": given,
            "created": before["created"] if before else now,
            "modified": now,
            "online": bool(before and same and before["online"]),
            "at": before["at"] if before and same else time.time(),
        }
        twin.store.put(KIND, key, deployment)
    if not deployment["online"]:
        twin.speaker.warm_up(found.base)
    return deployment, before is None


def find(twin: Twin, name: str) -> Body | None:
    """The deployment of that name, in any case."""
    return twin.store.get(KIND, name.lower())


def deployed(twin: Twin, name: str) -> models.Served:
    """The model behind a name.

    Raises:
        ServiceError: nothing is deployed under it.
    """
    deployment = find(twin, name)
    if deployment is None:
        raise invalid(
            "The API deployment for this resource does not exist. If you created the deployment "
            "within the last 5 minutes, please wait a moment and try again.",
            param=None,
            code="DeploymentNotFound",
            status=404,
        )
    return models.find(twin, deployment["model"])


def serving(twin: Twin, model: str) -> list[str]:
    """The deployments of a model."""
    return [doc.body["name"] for doc in twin.store.list(KIND) if doc.body["model"] == model]


def state(twin: Twin, deployment: Body) -> str:
    """How far it is, in Azure's words."""
    words = {"Online": "Succeeded", "Creating": "Creating", "CreationFailed": "Failed"}
    return words[served.state(twin, "openai-deployment", deployment["name"].lower(), deployment)]
