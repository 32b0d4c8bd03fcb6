"""A job as OpenAI's doors show it: the object, its events, its checkpoints. Nothing is kept twice."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from typing import Any

from local_runner.mock_server.openai.tuning import ORGANIZATION
from local_runner.mock_server.runs import run_of
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin

STATUS = {
    "Preparing": "validating_files",
    "Queued": "queued",
    "Running": "running",
    "Finalizing": "running",
    "PauseRequested": "pausing",
    "Paused": "paused",
    "ResumeRequested": "resuming",
    # The word for it is the one of before: what is asked for may come too late.
    "CancelRequested": "running",
    "Completed": "succeeded",
    "Failed": "failed",
    "Canceled": "cancelled",
}
"""The twin's states in OpenAI's words."""
_OMITTED = ("estimated_finish", "integrations", "metadata", "error", "validation_file")
"""What OpenAI leaves out where it is not there; Azure sends null."""


def shown(twin: Twin, job: Body, *, azure: bool) -> dict[str, Any]:
    """The `fine_tuning.job`."""
    own, state = job["openai"], job["state"]
    # "auto" becomes a number once the files are read.
    numbers = own["asked"] if state == "Preparing" else own["numbers"]
    done = state == "Completed"
    made = {
        "id": job["name"],
        "object": "fine_tuning.job",
        "model": own["model"],
        "created_at": _seconds(job["created"]),
        "finished_at": _seconds(job["ended"]) if job["ended"] else None,
        "fine_tuned_model": own["tuned"] if done else None,
        "organization_id": ORGANIZATION,
        "result_files": own["result_files"] if done else [],
        "status": STATUS[state],
        "training_file": own["training_file"],
        "validation_file": own["validation_file"],
        "hyperparameters": numbers,
        "trained_tokens": own["trained_tokens"] if done else None,
        "error": _error(job),
        "user_provided_suffix": own["suffix"] or None,
        "seed": own["seed"],
        "estimated_finish": _finish(twin, job) if state == "Running" else None,
        "integrations": None,
        "metadata": _metadata(job),
        "method": {"type": "supervised", "supervised": {"hyperparameters": numbers}},
    }
    if azure:
        return made | ({"trainingType": own["training_type"]} if own["training_type"] else {})
    return {key: value for key, value in made.items() if value is not None or key not in _OMITTED}


def _metadata(job: Body) -> dict[str, str] | None:
    """The user's, and what the twin adds: no program takes a stand-in's result for Phi's."""
    given: dict[str, str] | None = job["openai"]["metadata"]
    if "base" not in job:
        return given
    added = {"mock_simulated": str(job["simulated"]).lower(), "mock_trained_on": job["base"]}
    return {**(given or {}), **added}


def events(twin: Twin, job: Body) -> list[dict[str, Any]]:
    """What happened, the newest first."""
    found = sorted(_told(twin, job), key=lambda event: event[0])
    rows = [
        {
            "id": f"ftevent-{_hash(job['name'], str(at), message)}",
            "object": "fine_tuning.job.event",
            "created_at": int(at),
            "level": level,
            "message": message,
            "type": "metrics" if data else "message",
            "data": data,
        }
        for at, level, message, data in found
    ]
    return rows[::-1]


def checkpoints(twin: Twin, job: Body) -> list[dict[str, Any]]:
    """The adapters of the last epochs, the newest first."""
    metrics = run_of(twin, job).metrics()
    return [
        {
            "id": f"ftckpt_{_hash(job['name'], str(kept['step']))}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(kept["at"]),
            "fine_tuned_model_checkpoint": kept["model"],
            "fine_tuning_job_id": job["name"],
            "step_number": kept["step"],
            "metrics": _checkpoint_metrics(metrics, kept["step"]),
        }
        for kept in reversed(job["openai"]["checkpoints"])
    ]


def table(twin: Twin, job: Body) -> str:
    """The result file: a line a step."""
    steps: dict[int, dict[str, Any]] = {}
    for metric in run_of(twin, job).metrics():
        if metric["step"]:
            steps.setdefault(metric["step"], {}).update(_metrics(metric))
    names = ("train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
    lines = [
        ",".join([str(step), *(_cell(values.get(name)) for name in names)])
        for step, values in sorted(steps.items())
    ]
    head = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    return "\n".join([head, *lines]) + "\n"


_Told = tuple[float, str, str, dict[str, Any]]
_WORDS = {
    "Queued": "Files validated, moving job to queued state",
    "Running": "Fine-tuning job started",
    "PauseRequested": "Fine-tuning job is pausing",
    "Paused": "Fine-tuning job paused",
    "ResumeRequested": "Fine-tuning job is resuming",
    "Completed": "The job has successfully completed",
    "Canceled": "Fine-tuning job cancelled",
}


def _told(twin: Twin, job: Body) -> Iterator[_Told]:
    """When, how bad, what, and numbers; those of one moment in their order."""
    told = job["openai"].get("noted") or job["openai"]["checkpoints"]
    noted = max((kept["noted"] for kept in told), default=0.0)
    for state, when in job["history"]:
        at = dt.datetime.fromisoformat(when).timestamp()
        if state in (
            "Finalizing",
            "Completed",
        ):  # the engine's end; the last checkpoint was noted later
            at = max(at, noted + 0.001)
        for words in _words(job, state):
            yield at, "error" if state == "Failed" else "info", words, {}
    for metric in run_of(twin, job).metrics():
        if metric["step"]:  # else it was measured before anything was trained
            yield _step(metric)
    for kept in told:  # those too that have gone since: what was told once stays told
        words = f"Checkpoint created at step {kept['step']}: {kept['model']}"
        # When it was noted, not when it was written: no event comes to stand before one that was read.
        yield kept["noted"], "info", words, {}


def _words(job: Body, state: str) -> list[str]:
    """What is said when a job comes to a state."""
    own = job["openai"]
    match state:
        case "Preparing":
            files = [(key, own[key]) for key in ("training_file", "validation_file") if own[key]]
            read = [f"Validating {key.replace('_', ' ')}: {number}" for key, number in files]
            return [f"Created fine-tuning job: {job['name']}", *read]
        case "Failed":
            return [f"Fine-tuning job failed: {job['error']}"]
        case "Finalizing":
            # Not before all is there: a checkpoint noted meanwhile would come to stand before it.
            return [f"New fine-tuned model created: {own['tuned']}"] if own["result_files"] else []
        case _:
            return [_WORDS[state]] if state in _WORDS else []


def _step(metric: dict[str, Any]) -> _Told:
    step, most = metric["step"], metric["max_steps"]
    data = {"step": step, "total_steps": most} | _metrics(metric)
    trained = "train_loss" in data
    words = "training" if trained else "validation"
    loss = data["train_loss" if trained else "valid_loss"]
    return metric["at"], "info", f"Step {step}/{most}: {words} loss={loss:.2f}", data


def _metrics(metric: dict[str, Any]) -> dict[str, Any]:
    """A line of the run's metrics in OpenAI's words."""
    names = {
        "loss": "train_loss",
        "token_accuracy": "train_mean_token_accuracy",
        "eval_loss": "valid_loss",
        "eval_token_accuracy": "valid_mean_token_accuracy",
    }
    return {theirs: metric[ours] for ours, theirs in names.items() if ours in metric}


def _checkpoint_metrics(metrics: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """The last of each number until the step."""
    found: dict[str, Any] = {"step": step}
    for metric in metrics:
        if 0 < metric["step"] <= step:
            found |= _metrics(metric)
    # The validation rows are read whole each time.
    for name in ("valid_loss", "valid_mean_token_accuracy"):
        if name in found:
            found[f"full_{name}"] = found[name]
    return found


def _error(job: Body) -> dict[str, Any] | None:
    if not job["error"]:
        return None
    code, param = job.get("error_code") or "job_failed", job.get("error_param")
    return {"code": code, "message": job["error"], "param": param}


def _finish(twin: Twin, job: Body) -> int | None:
    """When the trainer thinks that it will be done."""
    metrics = run_of(twin, job).metrics()
    left = metrics[-1].get("seconds_left") if metrics else None
    return int(metrics[-1]["at"] + left) if left is not None else None


def _seconds(when: str) -> int:
    return int(dt.datetime.fromisoformat(when).timestamp())


def _hash(*words: str) -> str:
    return hashlib.sha256("/".join(words).encode()).hexdigest()[:24]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"
