"""Every door's routes in one table, but the blobs', which have rules of their own; and the application."""

from __future__ import annotations

from local_runner.mock_server.app import App
from local_runner.mock_server.control import control_door, describe
from local_runner.mock_server.control.journal import Journal
from local_runner.mock_server.doors import (
    chat_door,
    component_door,
    compute_door,
    data_door,
    deployment_door,
    endpoint_door,
    job_door,
    marketplace_door,
    model_door,
    online_door,
    registry_door,
    score_door,
    workspace_door,
)
from local_runner.mock_server.openai import (
    accounts_door,
    completions_door,
    files_door,
    models_door,
    tuning_door,
    uploads_door,
)
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Router
from local_runner.mock_server.worker import Worker


def make_router(twin: Twin, worker: Worker, journal: Journal) -> Router:
    """The doors of a twin."""
    doors = [
        *workspace_door.routes(twin),
        *registry_door.routes(twin),
        *data_door.routes(twin),
        *component_door.routes(twin),
        *compute_door.routes(twin),
        *online_door.routes(twin),
        *deployment_door.routes(twin),
        *score_door.routes(twin),
        *job_door.routes(twin, worker),
        *model_door.routes(twin),
        *marketplace_door.routes(twin),
        *endpoint_door.routes(twin),
        *chat_door.routes(twin),
        *files_door.routes(twin),
        *uploads_door.routes(twin),
        *tuning_door.routes(twin, worker),
        *models_door.routes(twin),
        *completions_door.routes(twin),
        *accounts_door.routes(twin),
        *control_door.routes(twin, worker, journal),
    ]
    return Router([*doors, *describe.routes(doors, twin.site)])


def make_app(twin: Twin, worker: Worker, journal: Journal) -> App:
    """The service as an ASGI application, under its local address and under the public names."""
    public = twin.in_public()
    router = make_router(twin, worker, journal)
    return App(twin, router, public=(public, make_router(public, worker, journal)), journal=journal)
