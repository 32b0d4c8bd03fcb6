"""A Kubernetes cluster as the few questions that the target has. The only file that knows `kubernetes`."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from maas_client.errors import (
    AuthError,
    ConflictError,
    NotFoundError,
    SettingsError,
    TargetError,
    UnreachableError,
)
from maas_client.settings import KaitoSettings
from maas_client.targets.kaito.schema import CRD, GROUP, PLURAL, VERSION
from maas_client.targets.kaito.workspace import MANAGER, OURS
from maas_client.transport import redact

Object = dict[str, Any]

_KINDS: Mapping[int, type[TargetError]] = {
    401: AuthError,
    403: AuthError,
    404: NotFoundError,
    409: ConflictError,
}
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_WAIT = (10, 60)
"""Seconds to connect, and that the cluster may be silent."""


class Cluster:
    """A connection to one cluster, made at the first question.

    Raises, with every question:
        TargetError: by the answer's status; UnreachableError where there is none.
        SettingsError: the kubernetes package or a kubeconfig is missing.
    """

    def __init__(self, settings: KaitoSettings) -> None:
        self._settings = settings
        self._line: Any = None

    def workspace(self, name: str) -> Object:
        return self._ask("custom", "get_namespaced_custom_object", *self._plural, name)

    def workspaces(self) -> list[Object]:
        found = self._ask("custom", "list_namespaced_custom_object", *self._plural)
        return list(found["items"])

    def apply_workspace(self, body: Object, *, dry_run: bool = False) -> Object | None:
        """Server-side apply. Returns what the server has then, and nothing after a dry run."""
        name = body["metadata"]["name"]
        self._ask(
            "custom",
            "patch_namespaced_custom_object",
            *self._plural,
            name,
            body,
            **self._applying(dry_run=dry_run),
        )
        # The client says nothing of an object that was made (201), so it is read back.
        return None if dry_run else self.workspace(name)

    def delete_workspace(self, name: str) -> None:
        self._ask("custom", "delete_namespaced_custom_object", *self._plural, name)

    def config_map(self, name: str) -> Object:
        return self._ask("core", "read_namespaced_config_map", name, self._settings.namespace)

    def config_maps(self) -> list[Object]:
        """Those that we made."""
        label = ",".join(f"{key}={value}" for key, value in OURS.items())
        found = self._ask(
            "core", "list_namespaced_config_map", self._settings.namespace, label_selector=label
        )
        return list(found.get("items") or ())

    def create_config_map(self, body: Object) -> None:
        """Make it, where there is none of that name.

        Raises:
            ConflictError: there is one.
        """
        self._ask(
            "core",
            "create_namespaced_config_map",
            self._settings.namespace,
            body,
            field_manager=MANAGER,
        )

    def apply_config_map(self, body: Object, *, dry_run: bool = False) -> None:
        """Server-side apply."""
        self._ask(
            "core",
            "patch_namespaced_config_map",
            body["metadata"]["name"],
            self._settings.namespace,
            body,
            **self._applying(dry_run=dry_run),
        )

    def annotate_config_map(self, name: str, notes: Mapping[str, str]) -> None:
        self._ask(
            "core",
            "patch_namespaced_config_map",
            name,
            self._settings.namespace,
            {"metadata": {"annotations": dict(notes)}},
            _content_type=_MERGE,
        )

    def delete_config_maps(self, name: str) -> None:
        """Those of one job, which has no Workspace."""
        for found in self.config_maps():
            called = found["metadata"]["name"]
            if called in (f"{name}-record", f"{name}-config", f"{name}-rows"):
                self._ask("core", "delete_namespaced_config_map", called, self._settings.namespace)

    def tuning_job(self, name: str) -> Object:
        """The batch Job that Kaito runs for a Workspace; it has the same name."""
        return self._ask("batch", "read_namespaced_job", name, self._settings.namespace)

    def pods(self, name: str) -> list[Object]:
        """The pods of a Workspace, the oldest first."""
        found = self._ask(
            "core",
            "list_namespaced_pod",
            self._settings.namespace,
            label_selector=f"{GROUP}/workspace={name}",
        )
        return sorted(
            found.get("items") or (), key=lambda pod: pod["metadata"].get("creationTimestamp") or ""
        )

    def log(self, pod: str, container: str) -> str:
        """What a container wrote, each line after its time."""
        said = self._raw(
            "core",
            "read_namespaced_pod_log",
            pod,
            self._settings.namespace,
            container=container,
            timestamps=True,
        )
        return said.decode("utf-8", errors="replace")

    def definition(self) -> Object | None:
        """The CRD of Workspaces; None where we may not read it.

        Raises:
            NotFoundError: the cluster has no Kaito.
        """
        try:
            return self._ask(
                "custom",
                "get_cluster_custom_object",
                "apiextensions.k8s.io",
                "v1",
                "customresourcedefinitions",
                CRD,
            )
        except AuthError:
            return None

    def secret(self, name: str) -> dict[str, bytes]:
        """The content of a Secret."""
        found = self._ask("core", "read_namespaced_secret", name, self._settings.namespace)
        try:
            data = found.get("data") or {}
            return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
        except (binascii.Error, TypeError) as error:
            raise TargetError(f"secret {name} cannot be read") from error

    def claim(self, name: str) -> Object:
        """A PersistentVolumeClaim."""
        return self._ask(
            "core", "read_namespaced_persistent_volume_claim", name, self._settings.namespace
        )

    def address(self) -> str:
        """Where the API server is. Asks nobody."""
        with self._errors():
            return str(self._apis["client"].configuration.host)

    def version(self) -> str:
        return str(self._ask("version", "get_code").get("gitVersion", "unknown"))

    def may(self, verb: str, resource: str, group: str = "") -> bool:
        """Whether the caller may do that in the namespace, to `pods` or to `pods/log`."""
        kind, _, part = resource.partition("/")
        attributes = {
            "namespace": self._settings.namespace,
            "verb": verb,
            "group": group,
            "resource": kind,
            **({"subresource": part} if part else {}),
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        found = self._ask("authorization", "create_self_subject_access_review", review)
        return bool((found.get("status") or {}).get("allowed"))

    def close(self) -> None:
        if self._line is not None:
            self._line["client"].close()
            self._line = None

    @property
    def _plural(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self._settings.namespace, PLURAL

    @property
    def _apis(self) -> Mapping[str, Any]:
        if self._line is None:
            self._line = _connect(self._settings)
        apis: Mapping[str, Any] = self._line
        return apis

    def _applying(self, *, dry_run: bool) -> dict[str, Any]:
        return {
            "field_manager": MANAGER,
            "field_validation": "Strict",
            "_content_type": _APPLY,
            **({"dry_run": "All"} if dry_run else {}),
        }

    def _ask(self, api: str, verb: str, *arguments: Any, **options: Any) -> Object:
        try:
            plain: Object = json.loads(self._raw(api, verb, *arguments, **options) or b"{}")
        except ValueError as error:
            raise TargetError(f"{verb}: the cluster's answer is not JSON") from error
        return plain

    def _raw(self, api: str, verb: str, *arguments: Any, **options: Any) -> bytes:
        """The answer as it came: the client's models refuse what a newer server says otherwise."""
        with self._errors():
            ask = getattr(self._apis[api], verb)
            answer = ask(*arguments, _request_timeout=_WAIT, _preload_content=False, **options)
            content: bytes = answer.data
            return content

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            from kubernetes.client.exceptions import ApiException
            from urllib3.exceptions import HTTPError
        except ImportError as error:
            raise _missing() from error
        try:
            yield
        except ApiException as error:
            raise _error(error.status, error.body, error.reason) from error
        except (HTTPError, OSError) as error:
            raise UnreachableError(
                redact(f"the cluster does not answer: {error}"),
                hint="`kubectl cluster-info` shows whether it is up, and the context right.",
            ) from error


def _connect(settings: KaitoSettings) -> Mapping[str, Any]:
    """The client's doors, by our names for them."""
    from kubernetes import client, config

    made = client.Configuration()
    try:
        if settings.kubeconfig is None and settings.context is None and _in_a_pod():
            config.load_incluster_config(client_configuration=made)
        else:
            config.load_kube_config(
                config_file=settings.kubeconfig,
                context=settings.context,
                client_configuration=made,
                persist_config=False,
            )
    except config.ConfigException as error:
        raise SettingsError(
            f"target {settings.name}: {error}",
            hint="Set kubeconfig and context of the target in maas.toml, or KUBECONFIG.",
        ) from error
    made.retries = False  # who asks knows better what may be asked twice
    line = client.ApiClient(made)
    return {
        "client": line,
        "core": client.CoreV1Api(line),
        "batch": client.BatchV1Api(line),
        "custom": client.CustomObjectsApi(line),
        "version": client.VersionApi(line),
        "authorization": client.AuthorizationV1Api(line),
    }


def _in_a_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ


def _error(status: int | None, body: Any, reason: str | None) -> TargetError:
    """The server's Status object, in our words."""
    try:
        raw = json.loads(body or "{}")
        message, code = raw.get("message") or reason, raw.get("reason") or ""
    except (ValueError, AttributeError, TypeError):
        message, code = reason, ""
    kind = _KINDS.get(status or 0, TargetError if status else UnreachableError)
    return kind(redact(str(message or "no answer")), status=status, code=code)


def _missing() -> SettingsError:
    return SettingsError(
        "the kubernetes package is not installed",
        hint='pip install "maas-finetune[kaito]" -c constraints.txt',
    )
