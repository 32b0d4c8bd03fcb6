"""What `maas targets check` finds on a cluster, each in clear words with its next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maas_client.errors import AuthError, MaasError, TargetError
from maas_client.settings import KaitoSettings
from maas_client.targets.base import Finding
from maas_client.targets.kaito import registry, schema
from maas_client.targets.kaito.cluster import Cluster

_RIGHTS = (
    ("patch", "workspaces", schema.GROUP),
    ("delete", "workspaces", schema.GROUP),
    ("create", "configmaps", ""),
    ("patch", "configmaps", ""),
    ("list", "pods", ""),
    ("get", "pods/log", ""),
)
"""What a job needs, its log included."""


def look(cluster: Cluster, settings: KaitoSettings) -> Sequence[Finding]:
    """Each thing in turn, up to the first that is missing."""
    found: list[Finding] = []
    for name, ask in (
        ("cluster", _cluster),
        ("kaito", _kaito),
        ("rights", _rights),
        ("output", _output),
    ):
        found.append(_finding(name, ask, cluster, settings))
        if not found[-1].ok:
            break
    return found


def _cluster(cluster: Cluster, settings: KaitoSettings) -> str:
    return f"Kubernetes {cluster.version()}, namespace {settings.namespace}"


def _kaito(cluster: Cluster, _: KaitoSettings) -> str:
    definition = cluster.definition()
    if definition is None:
        return (
            "its CRD may not be read here; the Workspace's structure is checked from our own notes"
        )
    if schema.of_crd(definition) is None:
        raise TargetError(
            f"the cluster's Kaito does not serve {schema.API_VERSION}",
            hint="A newer Kaito does.",
        )
    return f"serves {schema.API_VERSION}"


def _rights(cluster: Cluster, settings: KaitoSettings) -> str:
    missing = [
        f"{verb} {kind}" for verb, kind, group in _RIGHTS if not cluster.may(verb, kind, group)
    ]
    if missing:
        raise AuthError(
            f"not allowed in {settings.namespace}: {', '.join(missing)}",
            hint="Ask for a Role with these; docs/kaito.md has one.",
        )
    return "everything that a job needs is allowed"


def _output(cluster: Cluster, settings: KaitoSettings) -> str:
    if settings.output_claim:
        cluster.claim(settings.output_claim)
        return f"claim {settings.output_claim}"
    if not (settings.output_image and settings.output_secret):
        raise TargetError(
            "nobody has said where adapters go",
            hint="Set output_image and output_secret, or output_claim, of the target in maas.toml.",
        )
    host = registry.Reference.read(settings.output_image).registry
    try:
        kept = cluster.secret(settings.output_secret).get(".dockerconfigjson", b"{}")
    except AuthError:
        return f"image {settings.output_image}; the secret may not be read here"
    if registry.login(kept, host) is None:
        raise TargetError(
            f"secret {settings.output_secret} has no login for {host}",
            hint="kubectl create secret docker-registry makes one.",
        )
    return f"image {settings.output_image}, pushed with {settings.output_secret}"


def _finding(
    name: str,
    ask: Callable[[Cluster, KaitoSettings], str],
    cluster: Cluster,
    settings: KaitoSettings,
) -> Finding:
    try:
        return Finding(name, ok=True, detail=ask(cluster, settings))
    except MaasError as error:
        return Finding(name, ok=False, detail=error.message, next_step=error.hint)
