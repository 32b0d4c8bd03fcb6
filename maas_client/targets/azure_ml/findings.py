"""What `maas targets check` finds on Azure ML, each in clear words with its next step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maas_client.errors import (
    AuthError,
    MaasError,
    NotFoundError,
    SettingsError,
    TargetError,
)
from maas_client.settings import AzureMLSettings
from maas_client.spec.catalog import catalog
from maas_client.targets.azure_ml import words
from maas_client.targets.azure_ml.child import Child
from maas_client.targets.base import Finding

_ACTIONS: Mapping[str, str] = {
    "submit jobs": "Microsoft.MachineLearningServices/workspaces/jobs/write",
    "deploy models": "Microsoft.MachineLearningServices/workspaces/serverlessEndpoints/write",
}
PROVIDERS = ("Microsoft.MachineLearningServices", "Microsoft.Network")


def check(child: Child, settings: AzureMLSettings) -> Sequence[Finding]:
    """Look at each thing in the order in which it is needed; stop at what makes the rest moot."""
    found: list[Finding] = []
    for finding in _look(child, settings):
        found.append(finding)
        if not finding.ok and finding.name in ("azure-ai-ml", "reachable", "login", "workspace"):
            break
    return found


def _look(child: Child, settings: AzureMLSettings) -> Iterator[Finding]:
    yield _package(child)
    yield _reachable(child, settings)
    yield _login(child, settings)
    workspace, finding = _workspace(child, settings)
    yield finding
    if workspace is None:
        return
    yield _role(child, workspace["id"])
    yield _region(workspace["location"])
    for provider in PROVIDERS:
        yield _provider(child, settings, provider)


def _package(child: Child) -> Finding:
    try:
        return Finding("azure-ai-ml", ok=True, detail=f"version {child.ask('version')}")
    except SettingsError as error:
        return Finding("azure-ai-ml", ok=False, detail=error.message, next_step=error.hint)
    except MaasError as error:
        return Finding("azure-ai-ml", ok=False, detail=str(error), next_step=words.INSTALL)


def _reachable(child: Child, settings: AzureMLSettings) -> Finding:
    place = settings.resource_manager or "https://management.azure.com"
    try:
        child.ask("get_json", path="/metadata/endpoints?api-version=2022-09-01", login=False)
    except TargetError as error:
        if error.status is None:
            return Finding("reachable", ok=False, detail=error.message, next_step=error.hint)
    return Finding("reachable", ok=True, detail=f"{place} answers")


def _login(child: Child, settings: AzureMLSettings) -> Finding:
    try:
        child.ask("token")
    except MaasError as error:
        step = "`az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET."
        if settings.is_mock:
            step = error.hint
        detail = error.message.partition("\n")[0]  # the rest goes through each way to log in
        return Finding("login", ok=False, detail=detail, next_step=step)
    return Finding("login", ok=True, detail="DefaultAzureCredential has a token")


def _workspace(child: Child, settings: AzureMLSettings) -> tuple[Mapping[str, Any] | None, Finding]:
    where = f"{settings.workspace} in resource group {settings.resource_group}"
    try:
        found = child.ask("workspace")
    except NotFoundError as error:
        step = "Correct workspace, resource group and subscription in the settings, or create it."
        detail = f"there is no workspace {where}: {error.message}"
    except AuthError as error:
        step = f"Ask its owner for the role {words.ROLE}, or log in with another account."
        detail = f"you may not see workspace {where}: {error.message}"
    except MaasError as error:
        step, detail = error.hint, error.message
    else:
        return found, Finding("workspace", ok=True, detail=f"{where}, {found['location']}")
    return None, Finding("workspace", ok=False, detail=detail, next_step=step)


def _role(child: Child, workspace: str) -> Finding:
    """Ask which actions are allowed; where that is not told, whether the jobs may be listed."""
    step = f"Ask the workspace's owner for the role {words.ROLE}."
    path = f"{workspace}/providers/Microsoft.Authorization/permissions?api-version=2022-04-01"
    try:
        grants = child.ask("get_json", path=path, login=True)["value"]
    except (TargetError, KeyError, TypeError):
        return _may_list(child, step)
    missing = [name for name, action in _ACTIONS.items() if not _allows(grants, action)]
    if missing:
        detail = f"your account may not {' or '.join(missing)}"
        return Finding("role", ok=False, detail=detail, next_step=step)
    return Finding("role", ok=True, detail=f"your account may {' and '.join(_ACTIONS)}")


def _may_list(child: Child, step: str) -> Finding:
    try:
        child.ask("list", limit=1)
    except MaasError as error:
        return Finding("role", ok=False, detail=error.message, next_step=step)
    detail = "your account may list jobs; whether it may submit them, the service does not tell"
    return Finding("role", ok=True, detail=detail)


def _allows(grants: Sequence[Mapping[str, Any]], action: str) -> bool:
    """Whether some role grants the action and does not take it back."""
    return any(
        any(_matches(pattern, action) for pattern in grant.get("actions", ()))
        and not any(_matches(pattern, action) for pattern in grant.get("notActions", ()))
        for grant in grants
    )


def _matches(pattern: str, action: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), action, re.IGNORECASE) is not None


def _region(region: str) -> Finding:
    tuned = [m.name for m in catalog().values() if m.serverless and region in m.tuning_regions]
    if tuned:
        return Finding(
            "region", ok=True, detail=f"{region} fine-tunes {', '.join(tuned)} serverless"
        )
    regions = sorted({place for model in catalog().values() for place in model.tuning_regions})
    return Finding(
        "region",
        ok=False,
        detail=f"{region} fine-tunes no model of the catalogue serverless",
        next_step=f"Use a workspace in {', '.join(regions)}, or managed compute.",
    )


def _provider(child: Child, settings: AzureMLSettings, provider: str) -> Finding:
    path = f"/subscriptions/{settings.subscription_id}/providers/{provider}?api-version=2021-04-01"
    name = f"provider {provider}"
    try:
        state = child.ask("get_json", path=path, login=True).get("registrationState", "unknown")
    except TargetError as error:
        if settings.is_mock and error.status == 404:
            return Finding(name, ok=True, detail="not applicable: a mock has no providers")
        if error.status == 403:
            detail = "your account may not look; a subscription's reader can"
            return Finding(name, ok=True, detail=detail)
        return Finding(name, ok=False, detail=error.message, next_step=error.hint)
    step = "" if state == "Registered" else f"`az provider register --namespace {provider}`"
    return Finding(name, ok=state == "Registered", detail=str(state), next_step=step)
