"""What stands over the versions of an asset: its container, the same for data and for models."""

from __future__ import annotations

from typing import Any

from local_runner.mock_server.errors import not_found
from local_runner.mock_server.twin import Twin, system_data

_KEPT = ("isArchived", "tags", "description")


def container(twin: Twin, kind: str, name: str, *, route: str, what: str) -> dict[str, Any]:
    """The container in the service's form.

    Args:
        twin: the service.
        kind: of the documents: `data` or `model`.
        name: the asset's.
        route: the asset's part of a path: `data` or `models`.
        what: the asset's kind in a refusal.

    Raises:
        ServiceError: it has no version.
    """
    found = twin.store.list(kind, prefix=f"{name.lower()}/")
    if not found:
        raise not_found(what, name)
    numbers = [int(doc.body["version"]) for doc in found if doc.body["version"].isdigit()]
    kept = twin.store.get(f"{kind} container", name.lower()) or {}
    newest, first = found[0].body, found[-1].body
    return {
        "id": twin.arm_id(route, newest["name"]),
        "name": newest["name"],
        "type": f"Microsoft.MachineLearningServices/workspaces/{route}",
        "systemData": system_data(first["created"]),
        "properties": {
            "latestVersion": newest["version"],
            "nextVersion": str(max(numbers, default=0) + 1),
            "isArchived": bool(kept.get("isArchived")),
            "description": kept.get("description"),
            "tags": kept.get("tags") or {},
            "properties": {},
        },
    }


def keep(twin: Twin, kind: str, name: str, given: dict[str, Any], before: dict[str, Any]) -> None:
    """Remember what a PUT of the container says; what it does not say stays as it was."""
    kept = {key: given.get(key, before[key]) for key in _KEPT}
    twin.store.put(f"{kind} container", name.lower(), kept)
