"""The child process in which azure-ai-ml lives. The only file that imports azure.

azure-ai-ml remembers clouds for the life of a process, its blob client reads its CA from the
environment only, importing it takes seconds, and it prints. So it gets a process of its own, which
speaks JSON lines: settings first, then `{"id", "verb", "args"}` -> `{"id", "result"}` or
`{"id", "error"}`. It ends when its stdin does.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maas_client.targets.azure_ml.log import StreamReader
from maas_client.targets.azure_ml.stream import Printed, Stream

Lines = list[str]

_TERMINAL = frozenset({"Completed", "Failed", "Canceled"})
_MANAGEMENT = "https://management.azure.com"
_LAST_LINES_WITHIN = 30
"""Seconds that a stream may take to notice that its job has ended."""
_ONLINE_WITHIN = 1800
"""Seconds that a new endpoint may take."""


class Worker:
    """The verbs. Each takes and returns what JSON can carry."""

    def __init__(self, settings: Mapping[str, Any], printed: Printed) -> None:
        from azure.ai.ml import MLClient
        from azure.identity import DefaultAzureCredential

        self._settings, self._printed = settings, printed
        self._base = (settings["resource_manager"] or _MANAGEMENT).rstrip("/")
        self._credential = DefaultAzureCredential()
        self._client = MLClient(
            self._credential,
            settings["subscription_id"],
            settings["resource_group"],
            settings["workspace"],
            # Where the service names no pace, the SDK would look every 30 s only.
            polling_interval=1 if settings["resource_manager"] else 5,
            **_cloud(settings["resource_manager"]),
        )
        self._streams: dict[str, Stream] = {}
        self._old_lines: dict[str, list[str]] = {}
        self._reasons: dict[str, Any] = {}

    def submit(self, job: str) -> Any:
        from azure.ai.ml import load_job

        entity = load_job(io.StringIO(job))
        return self._job(self._client.jobs.create_or_update(entity))

    def get(self, name: str) -> Any:
        found = self._client.jobs.get(name)
        raw = self._job(found)
        if raw["status"] == "Failed":
            raw["error"] = self._reason(name)
        return raw

    def list(self, limit: int) -> Any:
        found = []
        for job in self._client.jobs.list():
            if job is not None and job.type == "finetuning":  # None: azure-ai-ml could not read it
                found.append(self._job(job))
                if len(found) == limit:
                    break
        return found

    def cancel(self, name: str) -> None:
        self._client.jobs.begin_cancel(name).result()

    def lines(self, name: str, skip: int) -> Any:
        """Status, then the log's lines after `skip`; complete when none can follow."""
        raw = self.get(name)
        ended = raw["status"] in _TERMINAL
        stream = self._streams.get(name)
        if ended and (stream is None or stream.has_ended(within=_LAST_LINES_WITHIN)):
            lines = self._whole_log(name, raw["status"])
            return {"job": raw, "lines": lines[skip:], "complete": True}
        if stream is None:
            stream = self._streams[name] = Stream(lambda reader: self._stream(name, reader))
        if not ended:
            stream.keep_going()
        return {"job": raw, "lines": stream.reader.lines[skip:], "complete": False}

    def download(self, name: str, folder: str) -> Any:
        """Bring artifacts and model to `folder`; returns where each is."""
        job = self._client.jobs.get(name)
        raw, model = self._job(job), None
        if raw["status"] == "Failed":
            raw["error"] = self._reason(name)
        with no_outsiders():
            self._client.jobs.download(name, download_path=folder)
            if raw["output_name"] and raw["status"] == "Completed":
                model = str(self._download_model(raw, folder))
        text = io.StringIO()
        job.dump(text)
        artifacts = Path(folder) / "artifacts"
        return {
            "job": raw,
            "yaml": text.getvalue(),
            "artifacts": str(artifacts) if artifacts.is_dir() else None,
            "model": model,
        }

    def deploy(self, model: str, endpoint: str) -> Any:
        from azure.ai.ml.entities import ServerlessEndpoint

        name, _, version = model.partition(":")
        found = (
            self._client.models.get(name, version=version)
            if version
            else self._client.models.get(name, label="latest")
        )
        workspace = self._client.workspaces.get(self._settings["workspace"])
        # The form that Microsoft's notebooks send; the workspace's guid has no public name.
        guid = workspace._workspace_id  # noqa: SLF001
        place = f"azureml://locations/{workspace.location}/workspaces/{guid}"
        wanted = f"{place}/models/{found.name}/versions/{found.version}"
        request = ServerlessEndpoint(name=endpoint, model_id=wanted)
        self._client.serverless_endpoints.begin_create_or_update(request).result()
        return self._until_online(endpoint)

    def endpoints(self) -> Any:
        return [self._endpoint(found) for found in self._client.serverless_endpoints.list()]

    def endpoint(self, name: str) -> Any:
        return self._endpoint(self._client.serverless_endpoints.get(name))

    def keys(self, name: str) -> Any:
        keys = self._client.serverless_endpoints.get_keys(name)
        return [keys.primary_key, keys.secondary_key]

    def undeploy(self, name: str) -> None:
        self._client.serverless_endpoints.get(name)  # deleting what is not there is no success
        self._client.serverless_endpoints.begin_delete(name).result()

    def archive(self, name: str, model: str | None) -> None:
        """Put a job, and the model it registered, out of sight."""
        self._client.jobs.archive(name)
        if model is not None:
            asset, _, version = model.partition(":")
            self._client.models.archive(asset, version=version)

    def version(self) -> str:
        return importlib.metadata.version("azure-ai-ml")

    def token(self) -> None:
        self._credential.get_token(f"{self._base}/.default")

    def workspace(self) -> Any:
        found = self._client.workspaces.get(self._settings["workspace"])
        return {"id": found.id, "location": found.location}

    def get_json(self, path: str, login: bool) -> Any:  # noqa: FBT001 - a JSON argument
        """GET from the resource manager what azure-ai-ml has no verb for."""
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy
        from azure.core.rest import HttpRequest

        policy = BearerTokenCredentialPolicy(self._credential, f"{self._base}/.default")
        client: Any = PipelineClient(self._base, policies=[policy] if login else [])
        with client, client.send_request(HttpRequest("GET", f"{self._base}{path}")) as response:
            response.raise_for_status()
            return response.json()

    def _stream(self, name: str, reader: StreamReader) -> None:
        try:
            with self._printed.to(reader.feed):
                self._client.jobs.stream(name)
        except Exception as error:  # noqa: BLE001 - a stream that breaks is begun again
            # Also the SDK's own: AttributeError while the service says `services: null`, and
            # JobException for a failed job, whose reason `get` reports.
            sys.stderr.write(f"stream of {name}: {error}\n")

    def _whole_log(self, name: str, status: str) -> Lines:
        """Every line of an ended job: the streamed ones, else those of the stored log."""
        stream = self._streams.get(name)
        streamed = stream.reader.lines if stream is not None else []
        # The SDK stops streaming where a cancellation begins, not where it ends.
        if stream is not None and stream.reader.is_whole and status != "Canceled":
            return streamed
        if name not in self._old_lines:
            with tempfile.TemporaryDirectory(prefix="maas-log-") as folder:
                self._client.jobs.download(name, download_path=folder)
                logs = sorted(Path(folder).glob("artifacts/user_logs/std_log*.txt"))
                text = logs[0].read_text(encoding="utf-8", errors="replace") if logs else ""
            self._old_lines[name] = [line for line in text.splitlines() if line.strip()]
        return max(self._old_lines[name], streamed, key=len)

    def _reason(self, name: str) -> Any:
        """Why it failed. Only the run history knows; streaming a failed job raises it as JSON."""
        if name not in self._reasons:
            try:
                with self._printed.to(lambda _: None):
                    self._client.jobs.stream(name)
            except Exception as error:  # noqa: BLE001 - the reason is what was raised
                text = str(error)
                try:
                    self._reasons[name] = json.loads(text[text.index("{") : text.rindex("}") + 1])
                except ValueError:
                    return "the service gave no reason; the job's log may tell"
        return self._reasons.get(name)

    def _download_model(self, raw: Mapping[str, Any], folder: str) -> Path:
        version = raw["output_version"] or "1"
        self._client.models.download(raw["output_name"], version, download_path=f"{folder}/model")
        return Path(folder) / "model"

    def _until_online(self, name: str) -> Any:
        give_up = time.monotonic() + _ONLINE_WITHIN
        while (found := self.endpoint(name))["state"] in ("creating", "updating"):
            if time.monotonic() > give_up:
                break
            time.sleep(2)
        return found

    def _job(self, job: Any) -> dict[str, Any]:
        output = (job.outputs or {}).get("registered_model")
        studio = (job.services or {}).get("Studio")
        return {
            "name": job.name,
            "status": str(getattr(job.status, "value", job.status)),
            "display_name": job.display_name,
            "model": getattr(job.model, "path", None) or str(job.model),
            "properties": dict(job.properties or {}),
            "created_at": _time(job.creation_context),
            "output_name": getattr(output, "name", None),
            "output_version": getattr(output, "version", None),
            "url": getattr(studio, "endpoint", None),
            "error": None,
        }

    def _endpoint(self, found: Any) -> dict[str, Any]:
        return {
            "name": found.name,
            "state": str(found.provisioning_state),
            "model_id": found.model_id,
            "scoring_uri": found.scoring_uri,
            "created_at": _time(found.system_data),
            "region": found.location,
        }


@contextmanager
def no_outsiders() -> Iterator[None]:
    """Refuse a download whose blobs are named to land outside of its folder.

    azure-ai-ml leaves such a blob out and says so in its log: then something is wrong with the rest.
    """
    skipped: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: skipped.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(lambda record: "outside the destination" in record.getMessage())
    logger = logging.getLogger("azure.ai.ml")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if skipped:
        raise ValueError(f"the download names files outside of its folder: {skipped[0]}")


def _time(context: Any) -> str | None:
    created = getattr(context, "created_at", None)
    return None if created is None else str(created)


def _cloud(resource_manager: str | None) -> dict[str, Any]:
    """What points MLClient at a service that is not the public cloud."""
    if resource_manager is None:
        return {}
    base = resource_manager.rstrip("/") + "/"
    metadata = {
        "azure_portal": "https://portal.azure.com",
        "resource_manager": base,
        "active_directory": base,
        "aml_resource_id": "https://ml.azure.com/",
        "storage_endpoint": "core.local",
        "registry_discovery_endpoint": base,
    }
    return {"cloud": "AzureMock", "cloud_metadata": metadata}


def describe(error: BaseException) -> dict[str, Any]:
    """The error as the parent reads it. SDK errors wrap one another; the service's own word counts."""
    from azure.core.exceptions import (
        ClientAuthenticationError,
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    chain = list(_chain(error))
    for found in chain:
        if isinstance(found, HttpResponseError) and found.response is not None:
            return _http(found)
    for found in chain:
        if isinstance(found, ClientAuthenticationError):
            return {"type": "login", "message": found.message}
        if isinstance(found, ServiceRequestError | ServiceResponseError):
            return {"type": "unreachable", "message": str(found)}
    if isinstance(error, ImportError):
        return {"type": "missing", "message": str(error)}
    return {"type": type(error).__name__, "message": getattr(error, "message", "") or str(error)}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "inner_exception", None)
        error = error.__cause__ or (
            inner if isinstance(inner, BaseException) else error.__context__
        )


def _http(error: Any) -> dict[str, Any]:
    response = error.response
    try:
        body = json.loads(response.text())["error"]
    except Exception:  # noqa: BLE001 - a blob's XML, a proxy's page, or a body that is gone
        body = {}
    if not isinstance(body, dict):
        body = {"message": str(body)}
    extra = {
        e.get("type"): (e.get("info") or {}).get("value") for e in body.get("additionalInfo") or []
    }
    inner = extra.get("InnerError") or body.get("innerError") or {}
    correlation = extra.get("Correlation") or {}
    headers = response.headers
    return {
        "type": "http",
        "message": body.get("message") or error.message,
        # An operation that failed is reported by an answer that went well.
        "status": error.status_code if (error.status_code or 0) >= 400 else None,
        "code": body.get("code") or headers.get("x-ms-error-code") or "",
        "inner": inner.get("code") or "",
        "request_id": headers.get("x-ms-request-id")
        or headers.get("x-ms-correlation-request-id")
        or correlation.get("request")
        or "",
    }


def main() -> None:
    """Serve the parent until it hangs up."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever else writes to stdout is noise
    printed = Printed(sys.stderr)
    sys.stdout = printed
    calls: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(calls,), daemon=True).start()
    settings = calls.get()
    worker: Worker | None = None
    while True:
        call = calls.get()
        try:
            if worker is None:
                worker = Worker(settings, printed)
            answer = {"result": getattr(worker, call["verb"])(**call["args"])}
        except ImportError as error:
            answer = {"error": {"type": "missing", "message": str(error)}}
        except Exception as error:  # noqa: BLE001 - every failure is the parent's to judge
            answer = {"error": describe(error)}
        replies.write(json.dumps({"id": call["id"], **answer}, default=str) + "\n")


def _listen(calls: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        calls.put(json.loads(line))
    os._exit(0)  # the parent is gone: do not finish what nobody waits for


if __name__ == "__main__":
    main()
