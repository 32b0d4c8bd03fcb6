"""Deployments of an Azure resource, through ARM; its tokens come from a managed identity or from `az`."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from maas_client.errors import AuthError, ConflictError, NotFoundError, TargetError
from maas_client.jobs import Endpoint
from maas_client.settings import FoundrySettings
from maas_client.targets.foundry import words
from maas_client.transport import Transport

_VERSION = "2024-10-01"
_AUDIENCE = "https://management.azure.com/"
_LONGEST_WAIT = 1800.0
_FRESH = 300.0
"""Seconds that a token must still have."""

Endpoints = list[Endpoint]


class Deployments:
    """What the resource serves.

    Args:
        settings: with its subscription, group and account.
        line: to ARM, with a token; made when first needed, with a token of its own.
    """

    def __init__(self, settings: FoundrySettings, *, line: Transport | None = None) -> None:
        self._settings = settings
        self._given = line
        self._line: Transport | None = None
        self._ends = 0.0
        self._account = (
            f"/subscriptions/{settings.subscription_id}/resourceGroups/{settings.resource_group}"
            f"/providers/Microsoft.CognitiveServices/accounts/{settings.account}"
        )

    def deploy(self, model: str, name: str) -> Endpoint:
        """Serve a model; returns when it answers.

        Raises:
            ConflictError: another model is served under that name; ARM would replace it silently.
            TargetError: the service could not bring it up.
        """
        with contextlib.suppress(NotFoundError):
            before = self.get(name)
            if before.model.casefold() != model.casefold():
                raise ConflictError(
                    f"deployment {name} already serves {before.model}, not {model}",
                    hint="Name another with --endpoint, or `maas undeploy` this one first.",
                )
        body = words.deployment_body(model, sku=self._settings.deployment_sku)
        self._arm().put(self._path(name), body)
        found = self._wait(lambda: self.get(name), lambda it: it.state == "creating")
        if found is None or found.state != "online":
            raise TargetError(
                f"deployment {name} is {found.state if found else 'gone'}, not online",
                hint=f"`maas undeploy {name} --target {self._settings.name}` ends the hourly bill.",
            )
        return found

    def list(self) -> Endpoints:
        """Every deployment, whatever page it is on."""
        path: str | None = self._path()
        found: Endpoints = []
        while path:
            raw = self._arm().get(path)
            found += [self._words(entry) for entry in raw.get("value", ())]
            path = self._next(raw.get("nextLink"))
        return found

    def get(self, name: str) -> Endpoint:
        return self._words(self._arm().get(self._path(name)))

    def delete(self, name: str) -> None:
        """Delete a deployment; returns when it is gone.

        Raises:
            NotFoundError: there is none of that name.
        """
        self.get(name)
        with contextlib.suppress(NotFoundError):  # a lost answer, and a second try
            self._arm().delete(self._path(name))
        if self._wait(lambda: self.get(name), lambda _: True) is not None:
            raise TargetError(f"deployment {name} is still there", hint="Look again in a while.")

    def keys(self) -> tuple[str, str]:
        """The resource's two keys. Secrets."""
        raw = self._arm().post(f"{self._account}/listKeys?api-version={_VERSION}", again="always")
        return raw["key1"], raw["key2"]

    def close(self) -> None:
        if self._line is not None:
            self._line.close()

    def _path(self, name: str = "") -> str:
        return f"{self._account}/deployments{name and '/' + name}?api-version={_VERSION}"

    def _next(self, link: str | None) -> str | None:
        """The path of the next page: a token goes to ARM, and to no other host that an answer names."""
        if not link:
            return None
        parts = urlsplit(link)
        return f"{parts.path}?{parts.query}"

    def _words(self, raw: dict[str, Any]) -> Endpoint:
        return words.deployment(raw, base_url=self._settings.base_url)

    def _wait(
        self, look: Callable[[], Endpoint], goes_on: Callable[[Endpoint], bool]
    ) -> Endpoint | None:
        """Look until it no longer goes on; None when it is gone."""
        ends, pause = time.monotonic() + _LONGEST_WAIT, 0.1
        while True:
            try:
                found = look()
            except NotFoundError:
                return None
            if not goes_on(found) or time.monotonic() > ends:
                return found
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _arm(self) -> Transport:
        if self._given is not None:
            return self._given
        if self._line is None or time.time() > self._ends - _FRESH:
            self.close()
            given = self._settings.identity_endpoint
            token, self._ends = identity_token(self._settings) if given else _az_token()
            self._line = Transport(
                self._settings.resource_manager.rstrip("/"),
                headers={"Authorization": f"Bearer {token}"},
                ca=self._settings.ca,
            )
        return self._line


def identity_token(
    settings: FoundrySettings, *, line: Transport | None = None
) -> tuple[str, float]:
    """A token for ARM out of the managed identity's endpoint, and when it ends.

    Args:
        settings: with that endpoint.
        line: to it, for tests.
    """
    address = urlsplit(settings.identity_endpoint or "")
    side = line or Transport(
        f"{address.scheme}://{address.netloc}",
        headers={"X-IDENTITY-HEADER": settings.identity_header or ""},
    )
    raw = side.get(address.path, {"resource": _AUDIENCE, "api-version": "2019-08-01"})
    side.close()
    return raw["access_token"], float(raw["expires_on"])


def _az_token() -> tuple[str, float]:
    az = shutil.which("az")
    if az is None:
        raise AuthError(
            "deployments are ARM's, and there is no login for it",
            hint="Install the Azure CLI and `az login`.",
        )
    command = [az, "account", "get-access-token", "--resource", _AUDIENCE, "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise AuthError("`az` has no token for ARM", hint="`az login`, then try again.")
    raw = json.loads(done.stdout)
    return raw["accessToken"], float(raw.get("expires_on") or time.time() + 2 * _FRESH)
