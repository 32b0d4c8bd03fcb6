"""What the doors share: where the twin is, what it remembers, and who works for it."""

from __future__ import annotations

import datetime as dt
import functools
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_runner.mock_server import names
from local_runner.mock_server.credentials import ACCOUNT, Secrets
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.storage.blobs import BlobStore
from local_runner.mock_server.store import Store
from maas_client.spec.catalog import ModelEntry, catalog

if TYPE_CHECKING:
    from local_runner.clock import Clock
    from local_runner.mock_server.chat import Speaker
    from local_runner.mock_server.control.controls import Controls
    from local_runner.mock_server.dice import Dice
    from local_runner.mock_server.engine import Engine

REGISTRIES = ("azureml", "azureml-phi")
"""The registry of Microsoft's models, and its vanity name."""
BLOB_STORE = "workspaceblobstore"
ARTIFACT_STORE = "workspaceartifactstore"
LRO_PACE = {"retry-after-ms": "100"}
"""How soon to ask again. The SDK reads Retry-After of a cancellation as a whole number, and takes 0
for 30 seconds; this header it obeys everywhere."""


@functools.cache
def _workspace_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


DEFAULT_AS_OF = dt.date(2025, 6, 1)
"""A day on which the Phi-3 models were not retired yet."""


@dataclass(frozen=True, slots=True)
class Site:
    """What the twin pretends to be."""

    url: str
    home: Path
    region: str = "eastus2"
    as_of: dt.date = DEFAULT_AS_OF
    """The catalogue date: retirement is judged by it."""
    public: bool = False
    """Whether it speaks of itself by the public cloud's names."""
    subscription: str = "00000000-0000-0000-0000-000000000000"
    group: str = "mock-group"
    workspace: str = "mock-workspace"

    @property
    def workspace_id(self) -> str:
        return _workspace_id(f"{self.subscription}/{self.workspace}")

    @property
    def workspace_path(self) -> str:
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace}"
        )

    @property
    def account(self) -> str:
        """The SDK makes `https://<account>.blob.<suffix>` of it: a path on this very server."""
        return ACCOUNT if self.public else f"{self.url.removeprefix('https://')}/{ACCOUNT}"

    @property
    def suffix(self) -> str:
        """The storage's."""
        return "core.windows.net" if self.public else "core.local"

    @property
    def api(self) -> str:
        """Where the workspace's and the registry's own planes are."""
        return f"https://{self.region}.api.azureml.ms" if self.public else self.url

    @property
    def login(self) -> str:
        """Where tokens are given."""
        return f"https://{names.LOGIN}" if self.public else self.url

    def scoring_uri(self, room: str, endpoint: str) -> str:
        """Where an endpoint answers; the room is `serverless` or `online`."""
        if not self.public:
            return f"{self.url}/{room}/{endpoint}"
        host = "models.ai" if room == "serverless" else "inference.ml"
        return f"https://{endpoint}.{self.region}.{host}.azure.com"

    def in_public(self) -> Site:
        """The same under the public cloud's names."""
        return replace(self, url=f"https://{names.ARM}", public=True)

    @property
    def blob_container(self) -> str:
        return f"azureml-blobstore-{self.workspace_id}"

    @property
    def artifact_container(self) -> str:
        return "azureml"

    def operation_url(self, operation: str, *, version: str) -> str:
        """Where to ask how far something is; `operation` is `mfeOperationsStatus/…` or `…Results/…`."""
        return (
            f"{self.url}/subscriptions/{self.subscription}/providers"
            f"/Microsoft.MachineLearningServices/locations/{self.region}"
            f"/{operation}?api-version={version}"
        )

    def container(self, datastore: str) -> str:
        return self.artifact_container if datastore == ARTIFACT_STORE else self.blob_container


@dataclass(frozen=True, slots=True)
class Twin:
    """The service: its place, its memory, and its helpers."""

    site: Site
    store: Store
    blobs: BlobStore
    secrets: Secrets
    engine: Engine
    speaker: Speaker
    clock: Clock
    dice: Dice
    controls: Controls

    def in_public(self) -> Twin:
        """The same service under the public cloud's names."""
        return replace(self, site=self.site.in_public())

    def operation_id(self) -> str:
        """An id as the service makes them: a colon inside a path segment."""
        return f"oeidp:{self.site.workspace_id}:{self.dice.uuid()}"

    def arm_id(self, *parts: str) -> str:
        return "/".join((self.site.workspace_path, *parts))

    def blob_url(self, container: str, name: str, *, permissions: str = "r") -> str:
        """An address that anyone who has it can read."""
        sas = self.secrets.sas(permissions=permissions)
        return f"https://{self.site.account}.blob.{self.site.suffix}/{container}/{name}?{sas}"

    def check_workspace(self, params: Any) -> None:
        """The one workspace there is.

        Raises:
            ServiceError: the path names another one.
        """
        site = self.site
        if params["sub"].lower() != site.subscription.lower():
            raise ServiceError(
                404,
                "SubscriptionNotFound",
                f"The subscription '{params['sub']}' could not be found.",
            )
        if params["group"].lower() != site.group.lower():
            raise ServiceError(
                404,
                "ResourceGroupNotFound",
                f"Resource group '{params['group']}' could not be found.",
            )
        if params["ws"].lower() != site.workspace.lower():
            raise ServiceError(
                404,
                "ResourceNotFound",
                "The Resource 'Microsoft.MachineLearningServices/workspaces/"
                f"{params['ws']}' under resource group '{params['group']}' was not found.",
            )


WORKSPACE = (
    "/subscriptions/{sub}/resourceGroups/{group}"
    "/providers/Microsoft.MachineLearningServices/workspaces/{ws}"
)
"""The beginning of every workspace route."""


def system_data(created: str, modified: str | None = None) -> dict[str, Any]:
    """Who made a resource, and when."""
    return {
        "createdAt": created,
        "createdBy": "maas mock user",
        "createdByType": "User",
        "lastModifiedAt": modified or created,
        "lastModifiedBy": "maas mock user",
        "lastModifiedByType": "User",
    }


def known_models() -> list[ModelEntry]:
    return list(catalog().values())
