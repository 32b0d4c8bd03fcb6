"""The public cloud's host names, as a program behind the proxy uses them, and what they are here."""

from __future__ import annotations

import re
from dataclasses import replace

from local_runner.mock_server.credentials import ACCOUNT
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.wire import Call

ARM = "management.azure.com"
LOGIN = "login.microsoftonline.com"
BLOB = f"{ACCOUNT}.blob.core.windows.net"
FOUNDRY = "mock-foundry"
"""The Cognitive Services account, whose models are asked and tuned in OpenAI's words."""
_FOUNDRY_HOSTS = ("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com")
_PROJECT = re.compile(r"/api/projects/[^/]+(?=/openai/)", re.IGNORECASE)
_ENDPOINT = re.compile(r"([a-z0-9-]+)\.([a-z0-9]+)\.(models\.ai|inference\.ml)\.azure\.com")


class Names:
    """Which public names are the twin's own.

    Args:
        region: the workspace's.
    """

    def __init__(self, region: str) -> None:
        self._region = region
        # The registry is discovered under eastus, wherever the workspace is.
        self._fixed = {ARM, LOGIN, "ml.azure.com"} | {
            f"{place}.{host}"
            for place in (region, "eastus")
            for host in ("api.azureml.ms", "experiments.azureml.net")
        }
        self._fixed |= {f"{FOUNDRY}.{host}" for host in _FOUNDRY_HOSTS}

    def owns(self, host: str) -> bool:
        """Whether the proxy may send this host's traffic to the twin."""
        name = host.lower().rstrip(".")
        endpoint = _ENDPOINT.fullmatch(name)
        return name in self._fixed or name == BLOB or bool(endpoint and endpoint[2] == self._region)

    def certified(self) -> list[str]:
        """What the certificate for the public names says."""
        wild = [f"*.{self._region}.models.ai.azure.com", f"*.{self._region}.inference.ml.azure.com"]
        return [*sorted(self._fixed), BLOB, *wild]

    def local(self, call: Call) -> Call:
        """The call with a public host's meaning in its path: an account's, an endpoint's, a project's.

        Raises:
            ServiceError: the host is the public cloud's, but not the twin's.
        """
        if project := _PROJECT.match(call.path):  # a project's doors are its account's
            call = replace(call, path=call.path[project.end() :], asked=call.path)
        host = call.headers.get("host", "").lower().partition(":")[0]
        if host.endswith((".azure.com", ".azureml.ms", ".windows.net", ".microsoftonline.com")):
            if not self.owns(host):
                raise ServiceError(404, "NotFound", f"{host} is not one of the mock's names.")
            if host == BLOB:
                return replace(call, path=f"/{BLOB}{call.path}", asked=call.path, public=True)
            if place := endpoint(host, ""):
                path = f"/{place[0]}/{place[1]}{call.path}"
                return replace(call, path=path, asked=call.path, public=True)
            return replace(call, public=True)
        return call


def endpoint(host: str, path: str) -> tuple[str, str] | None:
    """The room, `serverless` or `online`, and the name of the endpoint that is spoken to, if one is."""
    if match := _ENDPOINT.fullmatch(host.lower()):
        return ("serverless" if match[3] == "models.ai" else "online"), match[1]
    if match := re.match(r"/(serverless|online)/([^/]+)/", path):
        return match[1], match[2]
    return None
