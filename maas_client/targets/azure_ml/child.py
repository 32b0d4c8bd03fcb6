"""The parent's end of the worker process: starts it, asks it, ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maas_client.errors import AmbiguousError, TargetError
from maas_client.settings import AzureMLSettings
from maas_client.targets.azure_ml import words

WORKER = (sys.executable, "-P", "-m", "maas_client.targets.azure_ml.worker")

_OTHERS = ("AZURE_", "AZUREML_", "IDENTITY_", "MSI_", "ARM_CLOUD_METADATA_URL", "CURL_CA_BUNDLE")
"""Variables that would lead a mock's worker to another cloud, or log it in as somebody."""

_KEPT_STDERR = 40
"""Lines of the worker's noise that are kept, to explain its death."""


class Child:
    """A worker process, started at the first question. For one caller at a time.

    Args:
        settings: the workspace, or the mock of one.
        command: the worker; tests bring their own.
    """

    def __init__(self, settings: AzureMLSettings, *, command: Sequence[str] = WORKER) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._noise: deque[str] = deque(maxlen=_KEPT_STDERR)
        self._ender: weakref.finalize[..., Child] | None = None
        self._calls = 0

    def ask(self, verb: str, **arguments: Any) -> Any:
        """What the worker answers.

        Raises:
            TargetError: the service refused, does not answer, or the worker died.
            SettingsError: azure-ai-ml is not installed.
        """
        with self._lock:
            process = self._started()
            self._calls += 1
            answer = self._exchange(process, {"id": self._calls, "verb": verb, "args": arguments})
        if "error" in answer:
            raise words.error(
                answer["error"], name=self._settings.name, is_mock=self._settings.is_mock
            )
        return answer["result"]

    def close(self) -> None:
        """End the worker. It may be asked again; then a new one starts."""
        with self._lock:
            if self._ender is not None:
                self._ender()
            self._process = self._ender = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._ender is not None:
            self._ender()
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment(self._settings, os.environ),
            start_new_session=True,  # Ctrl-C is for the caller, who then closes the pipe
        )
        listener = threading.Thread(target=_collect, args=(process, self._noise), daemon=True)
        listener.start()
        self._process = process
        self._ender = weakref.finalize(self, _end, process, listener)
        self._send(process, asdict(self._settings))
        return process

    def _exchange(self, process: subprocess.Popen[str], call: Mapping[str, Any]) -> dict[str, Any]:
        self._send(process, call)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        for line in process.stdout:
            answer: dict[str, Any] = json.loads(line)
            # An answer to an earlier question, whose caller was interrupted, is nobody's.
            if answer["id"] == call["id"]:
                return answer
        raise self._died(process)

    def _send(self, process: subprocess.Popen[str], message: Mapping[str, Any]) -> None:
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died(process) from None

    def _died(self, process: subprocess.Popen[str]) -> TargetError:
        code = process.wait()
        if self._ender is not None:
            self._ender()
        said = words.redact("".join(self._noise)).strip() or "it said nothing"
        return AmbiguousError(
            f"the azure-ai-ml worker of {self._settings.name} ended with {code}: {said}",
            hint="Try again: a new one starts by itself.",
        )


def environment(settings: AzureMLSettings, given: Mapping[str, str]) -> dict[str, str]:
    """The worker's environment: the caller's for Azure, and for a mock one that leads there only."""
    env = dict(given)
    # The SDK would put the git state of the working directory into the job. It changes between
    # two submissions of one plan, which then would be two different jobs under one name.
    env["GIT_DIR"] = os.devnull
    root = str(Path(__file__).parents[3])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, given.get("PYTHONPATH"))))
    env.setdefault("AZUREML_RUN_POLLING_INTERVAL_MIN", "1")
    env.setdefault("AZUREML_RUN_POLLING_INTERVAL_MAX", "5")
    if not settings.is_mock:
        return env
    pace = {key: env[key] for key in env if key.startswith("AZUREML_RUN_POLLING_")}
    env = {key: value for key, value in env.items() if not key.startswith(_OTHERS)} | pace
    host = urlsplit(settings.resource_manager or "").hostname or ""
    for key in ("NO_PROXY", "no_proxy"):
        env[key] = ",".join(filter(None, (given.get(key), host)))
    identity = urlsplit(settings.identity_endpoint or "").hostname
    if identity and identity != host:
        env["NO_PROXY"] = env["no_proxy"] = f"{env['NO_PROXY']},{identity}"
    for key, value in (
        ("REQUESTS_CA_BUNDLE", settings.ca),
        ("IDENTITY_ENDPOINT", settings.identity_endpoint),
        ("IDENTITY_HEADER", settings.identity_header),
    ):
        if value is not None:
            env[key] = value
    return env


def _collect(process: subprocess.Popen[str], noise: deque[str]) -> None:
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    for line in process.stderr:
        noise.append(line)


def _end(process: subprocess.Popen[str], listener: threading.Thread) -> None:
    """Hang up, which ends the worker at once; reap it."""
    pipes = [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe]
    try:
        if process.stdin:
            process.stdin.close()
    except BrokenPipeError:
        pass
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    listener.join(5)
    for pipe in pipes[1:]:
        pipe.close()
