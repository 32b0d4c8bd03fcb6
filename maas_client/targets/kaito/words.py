"""Kaito's words in ours: conditions, pods and log lines as statuses, reasons, events and metrics. Pure."""

from __future__ import annotations

import ast
import datetime as dt
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from maas_client.jobs import Event, EventKind, Job, JobStatus
from maas_client.targets.base import known_status
from maas_client.targets.kaito.workspace import MODEL, TITLE, output
from maas_client.transport import redact

Raw = Mapping[str, Any]

_STATES: Mapping[str, JobStatus] = {
    "Pending": JobStatus.QUEUED,
    "Running": JobStatus.RUNNING,
    "Succeeded": JobStatus.SUCCEEDED,
    "Failed": JobStatus.FAILED,
}

_RESOURCES, _STARTED, _ENDED = "ResourceReady", "JobStarted", "WorkspaceSucceeded"
_BYSTANDERS = frozenset({"pause"})
"""Containers that Kaito puts beside the work, and that never end."""

_METRICS = {"loss", "grad_norm", "learning_rate", "epoch", "train_loss"}
_BAR = re.compile(r"\|\s*(\d+)/(\d+)\s*\[")
"""tqdm's bar: the step, and how many there will be."""

_INTERRUPTED = re.compile(r"\{'.*\}")


def conditions(workspace: Raw) -> dict[str, Raw]:
    return {entry["type"]: entry for entry in (workspace.get("status") or {}).get("conditions", ())}


def status(workspace: Raw) -> JobStatus:
    """Where a Workspace stands. Kaito before v0.9 says no state; its conditions do.

    Raises:
        TargetError: it says a state that we do not know.
    """
    told = conditions(workspace)
    if (word := (workspace.get("status") or {}).get("state")) is not None:
        return known_status(_STATES, word)
    if told.get(_ENDED, {}).get("status") == "True":
        return JobStatus.SUCCEEDED
    started = told.get(_STARTED, {})
    if str(started.get("reason", "")).endswith("Failed"):
        return JobStatus.FAILED
    return JobStatus.RUNNING if started.get("status") == "True" else JobStatus.QUEUED


def work_is_done(pods: Sequence[Raw]) -> bool:
    """Whether a pod's work ended well, though the pod does not: a container that only waits goes on."""
    for pod in pods:
        states = [
            entry.get("state", {}).get("terminated")
            for entry in (pod.get("status") or {}).get("containerStatuses", ())
            if entry["name"] not in _BYSTANDERS
        ]
        if states and all(state and state.get("exitCode") == 0 for state in states):
            return True
    return False


def reason(workspace: Raw, pods: Sequence[Raw]) -> str:
    """Why a job failed: which container ended how, or Kaito's own words."""
    for pod in reversed(pods):
        told = pod.get("status") or {}
        for entry in (*told.get("initContainerStatuses", ()), *told.get("containerStatuses", ())):
            ended = entry.get("state", {}).get("terminated")
            if ended and ended.get("exitCode"):
                said = ended.get("message") or ended.get("reason") or ""
                return redact(
                    f"container {entry['name']} ended with exit code {ended['exitCode']}"
                    + (f": {said}" if said else "")
                )
    ended = conditions(workspace).get(_ENDED, {})
    return redact(ended.get("message") or "Kaito gave no reason")


def job(workspace: Raw, word: JobStatus, *, target: str, error: str | None = None) -> Job:
    """A Workspace as a job."""
    metadata = workspace["metadata"]
    notes = metadata.get("annotations") or {}
    told = conditions(workspace)
    preset = ((workspace.get("tuning") or {}).get("preset") or {}).get("name", "")
    ended = _seconds(told.get(_ENDED, {}).get("lastTransitionTime"))
    return Job(
        id=metadata["name"],
        status=word,
        model=notes.get(MODEL) or preset,
        target=target,
        display_name=notes.get(TITLE, ""),
        created_at=_seconds(metadata.get("creationTimestamp")),
        ended_at=ended if word.is_terminal else None,
        error=error,
        output_model=output(workspace)[0] if word is JobStatus.SUCCEEDED else None,
    )


def events(
    workspace: Raw, found: Job, lines: Iterable[tuple[float, str]], every: int
) -> list[Event]:
    """What happened, in an order that no later look changes: the node, running, the log, the end.

    Args:
        workspace: as the cluster shows it.
        found: the same as a job.
        lines: the log, each line with its time.
        every: steps between two lines of losses.
    """
    told = conditions(workspace)
    begun = found.created_at or 0.0
    rows: list[tuple[float, EventKind, str, dict[str, Any]]] = []
    log = list(lines)
    stopped = found.status is JobStatus.CANCELLED and _STARTED not in told
    has_begun = bool(log) or not (stopped or found.status is JobStatus.QUEUED)
    if (node := told.get(_RESOURCES)) or has_begun:
        text = (node or {}).get("message") or "no word of the node yet"
        rows.append((_when(node, begun), "log", f"node: {redact(text)}", {}))
    if has_begun:
        rows.append(_stands(_when(told.get(_STARTED), begun), JobStatus.RUNNING))
        rows += _log_rows(log, every)
    if found.status.is_terminal:
        at = found.ended_at or (rows[-1][0] if rows else begun)
        text = f"{found.status}: {found.error}" if found.error else str(found.status)
        rows.append((at, "status", text, {"status": str(found.status)}))
    return [Event(number, *row) for number, row in enumerate(rows, 1)]


def log_lines(text: str, *, whole: bool) -> Iterator[tuple[float, str]]:
    """A pod's log, asked for with times: when each line was written, and what it says.

    Args:
        text: the log.
        whole: whether it is over; a last line without its end may otherwise be half a line.
    """
    if not whole:
        text = text[: text.rfind("\n") + 1]
    for line in text.split("\n"):
        stamp, _, said = line.rstrip("\r").partition(" ")
        if stamp:
            yield _seconds(stamp) or 0.0, said


def _stands(at: float, word: JobStatus) -> tuple[float, EventKind, str, dict[str, Any]]:
    return at, "status", str(word), {"status": str(word)}


def _log_rows(
    log: Iterable[tuple[float, str]], every: int
) -> Iterator[tuple[float, EventKind, str, dict[str, Any]]]:
    step, most = 0, None
    for at, line in log:
        for _, total in _BAR.findall(line):
            most = int(total)
        said = line.rsplit("\r", 1)[-1].strip()
        found = _INTERRUPTED.search(said)
        numbers = _numbers(found[0]) if found else {}
        if "loss" in numbers:
            step += every
            if most is not None:
                numbers["max_steps"], step = most, min(step, most)
            yield at, "metric", f"step {step}", {"step": step, **numbers}
        elif said and not _BAR.search(said):
            yield at, "log", redact(said), {}


def _numbers(text: str) -> dict[str, Any]:
    """The trainer's own line of numbers; some versions write them as text."""
    try:
        raw = ast.literal_eval(text)
        found = {key: float(raw[key]) for key in _METRICS & set(raw)}
    except (ValueError, SyntaxError, TypeError):
        return {}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _when(condition: Raw | None, otherwise: float) -> float:
    return _seconds((condition or {}).get("lastTransitionTime")) or otherwise


def _seconds(stamp: str | None) -> float | None:
    """RFC 3339 to seconds; a log has nanoseconds, which datetime does not read."""
    if not stamp:
        return None
    try:
        return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", stamp)).timestamp()
    except ValueError:
        return None
