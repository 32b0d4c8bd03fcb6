"""Where the targets are and how to log in. Secrets come from the environment only, and are not kept.

Sources, the later ones winning for a name given twice:

    built in              local
    $MAAS_HOME/mock       mock and mock-foundry, while `maas mock serve` runs
    .azureml/config.json  azure, as the Azure CLI and azure-ai-ml write it
    environment           azure: AZURE_SUBSCRIPTION_ID, AZURE_RESOURCE_GROUP, AZUREML_WORKSPACE_NAME
                          foundry: AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY, or
                          OPENAI_API_KEY, with OPENAI_BASE_URL where it is not OpenAI's own
    maas.toml             [targets.NAME] with kind = "local" | "azure_ml" | "foundry" | "kaito"
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maas_client.errors import SettingsError
from maas_client.spec.home import mock_home
from maas_client.spec.rundir import is_held

SETTINGS_FILE = "maas.toml"


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """A target on this machine."""

    name: str = "local"
    runs: str = "runs"
    """Folder in which each job gets its run directory; relative to the working directory."""
    base: str | None = None
    """Default for `--base`."""
    max_memory: str | None = None
    """Default for `--max-memory`."""
    mlflow: str | None = None
    """Default for `--mlflow`: the MLflow that runs are logged to; MLFLOW_TRACKING_URI says the same."""
    tensorboard: str | None = None
    """Default for `--tensorboard`: the folder that runs write TensorBoard files under."""


@dataclass(frozen=True, slots=True)
class AzureMLSettings:
    """An Azure ML workspace, or the mock of one: only these values differ."""

    name: str
    subscription_id: str
    resource_group: str
    workspace: str
    registry: str = "azureml"
    region: str | None = None
    """Where the workspace is, if known; asked from the workspace otherwise."""
    resource_manager: str | None = None
    """`https://host:port` of a service that is not the public cloud (the mock); None is Azure."""
    ca: str | None = None
    """PEM file of the authority that signed that service's certificate."""
    identity_endpoint: str | None = None
    """Managed-identity endpoint that hands out tokens for it."""
    identity_header: str | None = field(default=None, repr=False)

    @property
    def is_mock(self) -> bool:
        return self.resource_manager is not None


_OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class FoundrySettings:
    """A service with OpenAI's fine-tuning wire: Microsoft Foundry, Azure OpenAI, OpenAI, the mock."""

    name: str
    endpoint: str
    """`https://RESOURCE.openai.azure.com`, or an address that ends with `/v1` as it is."""
    api_key_env: str = ""
    """Environment variable with the key; AZURE_OPENAI_API_KEY or OPENAI_API_KEY without it."""
    ca: str | None = None
    """PEM file of the authority that signed the service's certificate."""
    subscription_id: str | None = None
    """With `resource_group` and `account`: where models are deployed, through Azure's ARM."""
    resource_group: str | None = None
    account: str | None = None
    """The resource's name."""
    deployment_sku: str = "Standard"
    resource_manager: str = "https://management.azure.com"
    identity_endpoint: str | None = None
    """Managed-identity endpoint that hands out tokens for ARM; without it `az` is asked."""
    identity_header: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    """The mock's; a real one stays in the environment."""

    @property
    def base_url(self) -> str:
        """Where the verbs start; ends with `/v1`."""
        root = self.endpoint.rstrip("/")
        return root if root.endswith("/v1") else f"{root.removesuffix('/openai')}/openai/v1"

    @property
    def is_azure(self) -> bool:
        """Whether it is Azure's form of the wire, with `api-key` and deployments."""
        return urlsplit(self.base_url).path.endswith("/openai/v1")

    @property
    def has_arm(self) -> bool:
        """Whether it is known where models are deployed."""
        return bool(self.subscription_id and self.resource_group and self.account)

    def key(self) -> str:
        """The key, out of the environment. One that is Azure's is shown to nobody else.

        Raises:
            SettingsError: there is none.
        """
        usual = ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY")
        names = (self.api_key_env,) if self.api_key_env else usual[0 if self.is_azure else 1 :]
        found = self.api_key or next(
            (os.environ[name] for name in names if os.environ.get(name)), ""
        )
        if not found:
            raise SettingsError(
                f"target {self.name} has no key: {' and '.join(names)} not set",
                hint=f"export {names[0]}=…, or name another variable with api_key_env in {SETTINGS_FILE}.",
            )
        return found

    def key_header(self) -> dict[str, str]:
        """The header that the service knows its caller by. A secret."""
        key = self.key()
        return {"api-key": key} if self.is_azure else {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True)
class KaitoSettings:
    """A Kubernetes cluster with Kaito, and how a job's rows and adapter get to and from it."""

    name: str
    namespace: str = "default"
    kubeconfig: str | None = None
    """KUBECONFIG or ~/.kube/config without it; inside a cluster, the pod's own account."""
    context: str | None = None
    """The current one of the kubeconfig without it."""
    instance_type: str = "Standard_NC24ads_A100_v4"
    """Size of the node that Kaito is to bring; empty where the cluster has its own GPU nodes."""
    node_selector: str = "apps=maas-finetune"
    """Labels of the nodes, `key=value` with commas between. Kaito gives them to the nodes it brings."""
    output_image: str | None = None
    """`registry/repository` that adapters are pushed to, each under its job's name as the tag."""
    output_secret: str | None = None
    """Secret of type kubernetes.io/dockerconfigjson that may push there."""
    output_claim: str | None = None
    """PersistentVolumeClaim that the adapter is written to, instead of an image."""
    data_claim: str | None = None
    """PersistentVolumeClaim that holds the training rows under the job file's file name."""
    data_image: str | None = None
    """Image that holds them in its folder /data."""
    data_secret: str | None = None
    """Secret that may pull it."""


TargetSettings = LocalSettings | AzureMLSettings | FoundrySettings | KaitoSettings


@dataclass(frozen=True, slots=True)
class MockState:
    """What `maas mock serve` writes to `server.json` when it is ready, and removes when it stops."""

    pid: int
    url: str
    """`https://127.0.0.1:port`, no trailing slash."""
    identity_endpoint: str
    identity_header: str = field(repr=False)
    ca: str
    subscription_id: str
    resource_group: str
    workspace: str
    region: str
    engine: str
    """`train` or `simulate`."""
    as_of: str
    """The catalogue date, ISO."""
    base: str
    """What the train engine trains, in words."""
    openai_url: str = ""
    """The door that speaks OpenAI's wire; empty where the mock has none."""
    api_key: str = field(default="", repr=False)
    """Opens that door."""
    openai_account: str = ""
    """What ARM calls the resource behind it."""


def mock_state(folder: Path | None = None) -> MockState | None:
    """The running mock, or None."""
    home = folder or mock_home()
    file = home / "server.json"
    lock = home / "server.lock"
    if lock.exists() and not is_held(lock):
        return None  # it was killed: the file is a leftover
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        needed = {entry.name for entry in fields(MockState) if entry.default is MISSING}
        given = {entry.name for entry in fields(MockState) if entry.name in raw}
        return MockState(**{name: raw[name] for name in needed | given})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{file} cannot be read: {error!r}", hint="`maas mock stop` clears it away."
        ) from error


def load_targets(folder: Path | None = None) -> dict[str, TargetSettings]:
    """Every target that can be named with `--target`, from all sources."""
    here = (folder or Path.cwd()).resolve()
    targets: dict[str, TargetSettings] = {"local": LocalSettings()}
    if (state := mock_state()) is not None:
        targets["mock"] = _mock(state)
        if state.openai_url:
            targets["mock-foundry"] = _mock_foundry(state)
    if (azure := _azure_environment() or _azureml_config(here)) is not None:
        targets["azure"] = azure
    if (foundry := _foundry_environment()) is not None:
        targets["foundry"] = foundry
    if (file := _find(here, SETTINGS_FILE)) is not None:
        targets |= _toml(file)
    return targets


def find_target(name: str, folder: Path | None = None) -> TargetSettings:
    """The settings of one target.

    Raises:
        SettingsError: there is none of that name; the error lists those there are.
    """
    targets = load_targets(folder)
    if name in targets:
        return targets[name]
    hint = f"Known: {', '.join(targets)}. "
    if name in ("mock", "mock-foundry"):
        hint += "`maas mock serve` starts the mock."
    elif name == "azure":
        hint += (
            "Put config.json of your workspace into .azureml/, or [targets.azure] into maas.toml."
        )
    elif name == "foundry":
        hint += (
            "Set AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY (or OPENAI_API_KEY), or add "
            f'[targets.foundry] with kind = "foundry" and endpoint to {SETTINGS_FILE}.'
        )
    elif name == "kaito":
        hint += (
            f'Add [targets.kaito] with kind = "kaito" to {SETTINGS_FILE}; docs/kaito.md shows it.'
        )
    else:
        hint += f"Add [targets.{name}] to {SETTINGS_FILE}."
    raise SettingsError(f"there is no target {name!r}", hint=hint)


def _mock(state: MockState) -> AzureMLSettings:
    return AzureMLSettings(
        name="mock",
        subscription_id=state.subscription_id,
        resource_group=state.resource_group,
        workspace=state.workspace,
        region=state.region,
        resource_manager=state.url,
        ca=state.ca,
        identity_endpoint=state.identity_endpoint,
        identity_header=state.identity_header,
    )


def _mock_foundry(state: MockState) -> FoundrySettings:
    return FoundrySettings(
        name="mock-foundry",
        endpoint=state.url,  # Azure's way to it, where models are deployed before they answer
        ca=state.ca,
        subscription_id=state.subscription_id,
        resource_group=state.resource_group,
        account=state.openai_account,
        resource_manager=state.url,
        identity_endpoint=state.identity_endpoint,
        identity_header=state.identity_header,
        api_key=state.api_key,
    )


def _find(folder: Path, name: str) -> Path | None:
    for parent in (folder, *folder.parents):
        if (parent / name).is_file():
            return parent / name
    return None


def _azureml_config(folder: Path) -> AzureMLSettings | None:
    file = _find(folder, ".azureml/config.json")
    if file is None:
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))
        return AzureMLSettings(
            name="azure",
            subscription_id=raw["subscription_id"],
            resource_group=raw["resource_group"],
            workspace=raw["workspace_name"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{file}: {error!r}",
            hint="It needs subscription_id, resource_group and workspace_name, as the portal exports it.",
        ) from error


def _azure_environment() -> AzureMLSettings | None:
    subscription = os.environ.get("AZURE_SUBSCRIPTION_ID")
    group = os.environ.get("AZURE_RESOURCE_GROUP")
    workspace = os.environ.get("AZUREML_WORKSPACE_NAME")
    if not (subscription and group and workspace):
        return None
    return AzureMLSettings("azure", subscription, group, workspace)


def _foundry_environment() -> FoundrySettings | None:
    """An endpoint is what it is; OpenAI's key alone is for OpenAI's own."""
    ca = os.environ.get("SSL_CERT_FILE")
    named = os.environ.get("AZURE_OPENAI_ENDPOINT") or os.environ.get("OPENAI_BASE_URL")
    endpoint = named or (_OPENAI if os.environ.get("OPENAI_API_KEY") else None)
    return FoundrySettings("foundry", endpoint, ca=ca) if endpoint else None


def _toml(file: Path) -> dict[str, TargetSettings]:
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: {error}") from error
    entries = raw.get("targets", {})
    if not isinstance(entries, dict):
        raise SettingsError(f"{file}: targets must be a table of tables, [targets.NAME]")
    return {name: _toml_target(file, name, entry) for name, entry in entries.items()}


_KINDS: Mapping[str, type[TargetSettings]] = {
    "local": LocalSettings,
    "azure_ml": AzureMLSettings,
    "foundry": FoundrySettings,
    "kaito": KaitoSettings,
}
_NEVER_IN_A_FILE = frozenset({"name", "identity_header", "api_key"})


def _toml_target(file: Path, name: str, entry: Any) -> TargetSettings:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise SettingsError(
            f"{file}: [targets.{name}] has kind {kind!r}",
            hint=f"kind is one of {', '.join(_KINDS)}.",
        )
    allowed = {item.name for item in fields(_KINDS[kind])} - _NEVER_IN_A_FILE
    given = {key: value for key, value in entry.items() if key != "kind"}
    if unknown := sorted(set(given) - allowed):
        raise SettingsError(
            f"{file}: [targets.{name}] has unknown keys: {', '.join(unknown)}",
            hint=f"Allowed: {', '.join(sorted(allowed))}.",
        )
    if wrong := [key for key, value in given.items() if not isinstance(value, str)]:
        raise SettingsError(f"{file}: [targets.{name}] {wrong[0]} must be text")
    try:
        return _KINDS[kind](name=name, **given)
    except TypeError as error:
        missing = str(error).partition("argument")[2].strip(" s:")
        raise SettingsError(f"{file}: [targets.{name}] lacks {missing}") from error
