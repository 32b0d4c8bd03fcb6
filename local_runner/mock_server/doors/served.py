"""Which model an endpoint serves, and how far it is with loading it."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Literal

from local_runner.mock_server.errors import not_found, user_error
from local_runner.mock_server.registration import adapter_of
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from maas_client.spec.catalog import ModelEntry, find_model

_DEPLOY_SECONDS = 0.3
"""How long an endpoint is Creating at least, while the model is loaded."""


def find_served(twin: Twin, model_id: str) -> tuple[ModelEntry, Body]:
    """The registered model, or base model of the registry, that an id names; and its base.

    Raises:
        ServiceError: the id names none, or one that nobody can answer with.
    """
    match = re.search(r"/models/([^/]+)(?:/versions/([^/]+))?$", model_id)
    if match is None:
        raise user_error(f"modelId {model_id!r} is not a model.", inner="InvalidModelId")
    if "/registries/" in model_id:
        return _of_registry(match[1], match[2])
    if match[2] is None:
        raise user_error(f"modelId {model_id!r} has no version.", inner="InvalidModelId")
    key = f"{match[1]}/{match[2]}".lower()
    found = twin.store.get("model", key)
    if found is None:
        raise not_found("Model", f"{match[1]}:{match[2]}")
    entry = find_model(found["base_model"])
    if entry is None or not found["adapter"]:
        raise user_error(
            f"{match[1]}:{match[2]} is no fine-tuned model of the catalogue: the mock cannot serve it.",
            inner="ModelNotSupported",
        )
    return entry, found | {"key": key}


def label(model: Body) -> str:
    """A model's name and version in one word."""
    return f"{model['name']}:{model['version']}" if model["version"] else str(model["name"])


def state(
    twin: Twin, kind: Literal["endpoint", "deployment", "openai-deployment"], key: str, body: Body
) -> str:
    """Once online, always online: the model is loaded again when a question needs it."""
    if body["online"]:
        return "Online"
    if twin.speaker.fault() is not None:
        return "CreationFailed"
    young = time.time() - body["at"] < _DEPLOY_SECONDS
    if young or not twin.speaker.is_ready(body["base_model"]):
        return "Creating"
    with contextlib.suppress(KeyError):  # deleted meanwhile
        twin.store.change(kind, key, online=True)
    return "Online"


def adapter(twin: Twin, served: Body) -> Path | None:
    """The weights beside the base model of an endpoint or deployment; None where there are none.

    Raises:
        ServiceError: the model is gone, or was never trained.
    """
    model = twin.store.get("model", served["model_key"])
    if model is not None:
        return adapter_of(twin, model)
    if ":" in served["model"]:
        raise not_found("Model", served["model"])
    return None  # a base model of the registry


def _of_registry(name: str, version: str | None) -> tuple[ModelEntry, Body]:
    entry = find_model(name)
    if entry is None:
        raise not_found("Model", name)
    if version is not None and version not in entry.versions:
        raise not_found("Model", f"{entry.name}:{version}")
    return entry, {
        "name": entry.name,
        "version": None,
        "base_model": entry.name,
        "key": entry.name,
    }
