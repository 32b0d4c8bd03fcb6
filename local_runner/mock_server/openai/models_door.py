"""Models: list, look at, delete those that were tuned here."""

from __future__ import annotations

from local_runner.mock_server.openai import accounts, models
from local_runner.mock_server.openai.access import everywhere, invalid
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door, one = _Door(twin), "/models/{model}"
    return [
        *everywhere("GET", "/models", door.list, call="models.list"),
        *everywhere("GET", one, door.get, call="models.retrieve"),
        *everywhere("DELETE", one, door.delete, call="models.delete"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def list(self, call: Call) -> Reply:
        return Reply(body={"object": "list", "data": models.listed(self._twin)})

    def get(self, call: Call) -> Reply:
        wanted = models.find(self._twin, call.params["model"]).name
        found = (model for model in models.listed(self._twin) if model["id"] == wanted)
        return Reply(body=next(found))

    def delete(self, call: Call) -> Reply:
        with self._twin.store.transaction():  # nobody deploys it meanwhile
            return self._delete(models.find(self._twin, call.params["model"]).name)

    def _delete(self, name: str) -> Reply:
        used = accounts.serving(self._twin, name)
        if used:
            raise invalid(
                f"The model {name} is deployed as {', '.join(used)}. Delete the deployment first.",
                param="model",
                code="model_in_use",
                status=409,
            )
        if not models.forget(self._twin, name):
            raise invalid(
                f"The model {name} is not one that was fine-tuned here; it cannot be deleted.",
                param="model",
                code="model_not_deletable",
                status=403,
            )
        return Reply(body={"id": name, "object": "model", "deleted": True})
