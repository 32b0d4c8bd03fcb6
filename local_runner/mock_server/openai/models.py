"""Which models OpenAI's doors know: the catalogue's, those that were tuned here, and the workspace's."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_runner.mock_server.openai.access import invalid
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from maas_client.spec.catalog import ModelEntry, catalog, find_model

KIND = "openai-model"


@dataclass(frozen=True, slots=True)
class Served:
    """A model that can be asked."""

    name: str
    base: str
    """The catalogue's model under it."""
    adapter: Path | None
    """None for a base model, and where nothing was trained."""


def remember(twin: Twin, name: str, base: str, adapter: Path, *, job: str, simulated: bool) -> None:
    """A model that a job has made. Can be done twice."""
    before = twin.store.get(KIND, name.lower())
    created = before["created"] if before else int(twin.clock.time())
    body = {
        "name": name,
        "created": created,
        "base": base,
        "adapter": str(adapter),
        "job": job,
        "simulated": simulated,
    }
    if body != before:
        twin.store.put(KIND, name.lower(), body)


def forget(twin: Twin, name: str) -> bool:
    """Whether it was there."""
    return twin.store.delete(KIND, name.lower())


def find(twin: Twin, name: str) -> Served:
    """The model of that name, in any case.

    Raises:
        ServiceError: there is none, or nobody can answer with it.
    """
    if entry := _entry(twin, name):
        return Served(entry.name, entry.name, None)
    found = twin.store.get(KIND, name.lower()) or _registered(twin).get(name.lower())
    if found is None:
        raise invalid(
            f"The model '{name[:100]}' does not exist or you do not have access to it.",
            param="model",
            code="model_not_found",
            status=404,
        )
    return Served(found["name"], found["base"], _adapter(twin, found))


def listed(twin: Twin) -> list[dict[str, Any]]:
    """All of them, as `models.list` has them."""
    as_of = dt.datetime.combine(twin.site.as_of, dt.time(), dt.UTC)
    base = [
        _shown(entry.name, int(as_of.timestamp()), "microsoft", tunable=_is_tunable(twin, entry))
        for entry in catalog().values()
        if not entry.is_retired(twin.site.as_of)
    ]
    tuned = [doc.body for doc in twin.store.list(KIND)]
    owned = [*tuned, *_registered(twin).values()]
    return [_shown(one["name"], one["created"], "mock", tunable=False) for one in owned] + base


def _entry(twin: Twin, name: str) -> ModelEntry | None:
    entry = find_model(name)
    return None if entry is None or entry.is_retired(twin.site.as_of) else entry


def _is_tunable(twin: Twin, entry: ModelEntry) -> bool:
    return entry.serverless and twin.site.region in entry.tuning_regions


def _registered(twin: Twin) -> dict[str, Body]:
    """The workspace's fine-tuned models that were made at Azure ML's doors, by `name:version`."""
    made_here = {doc.body["job"] for doc in twin.store.list(KIND)}
    return {
        f"{model['name']}:{model['version']}".lower(): {
            "name": f"{model['name']}:{model['version']}",
            "created": int(dt.datetime.fromisoformat(model["created"]).timestamp()),
            "base": model["base_model"],
            "adapter": model["adapter"],
            "simulated": model["properties"]["properties"].get("mockSimulated") == "true",
        }
        for doc in twin.store.list("model")
        if (model := doc.body).get("adapter")
        and find_model(model["base_model"] or "")
        and model["properties"].get("jobName") not in made_here
    }


def _adapter(twin: Twin, model: Body) -> Path | None:
    if twin.engine.simulates:
        return None
    folder = Path(model["adapter"])
    if model["simulated"] or not folder.is_dir():
        raise invalid(
            f"{model['name']} has no weights: it was simulated, or its job was deleted.",
            param="model",
            code="model_without_weights",
        )
    return folder


def _shown(name: str, created: int, owner: str, *, tunable: bool) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owner,
        # Azure's doors say so; OpenAI's clients pass it over.
        "capabilities": {
            "fine_tune": tunable,
            "inference": True,
            "completion": False,
            "chat_completion": True,
            "embeddings": False,
        },
    }
