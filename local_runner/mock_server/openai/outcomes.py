"""What the worker does for a job of OpenAI's doors: judges rows, notes checkpoints, keeps results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from local_runner.mock_server.lifecycle import move
from local_runner.mock_server.openai import files, job_words, models
from local_runner.mock_server.openai.tuning import MIN_ROWS
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from maas_client.spec.rundir import EPOCH_FILE, RunDir, read_json

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_PIECE = 1024 * 1024
_TOKEN_BYTES = 4
"""Bytes of a token, where nothing has counted them: a simulation reads no rows."""


def validate(twin: Twin, job: Body) -> None:
    """Look at the files: the job is queued, or has failed."""
    rows = job["openai"]["rows"]
    if rows >= MIN_ROWS:
        move(twin, job, "Queued", only=("Preparing",))
        return
    message = f"Training file has {rows} example(s), but must have at least {MIN_ROWS} examples"
    move(
        twin,
        job,
        "Failed",
        only=("Preparing",),
        error=message,
        error_code="invalid_n_examples",
        error_param="training_file",
    )


def note_checkpoints(twin: Twin, job: Body, run: RunDir) -> None:
    """Know the adapters that are there; those that have gone are models no more."""
    before, epochs = job["openai"]["checkpoints"], run.epochs()
    if [kept["epoch"] for kept in before] == epochs:
        return
    simulated = twin.engine.simulates
    noted = {kept["model"]: kept["noted"] for kept in before}
    found = []
    for epoch in epochs:
        kept = read_json(run.epoch(epoch) / EPOCH_FILE)
        name = f"{job['openai']['tuned']}:ckpt-step-{kept['step']}"
        found.append(kept | {"model": name, "noted": noted.get(name, twin.clock.time())})
        models.remember(
            twin, name, job["entry"], run.epoch(epoch), job=job["name"], simulated=simulated
        )
    for kept in before:
        if kept["model"] not in {one["model"] for one in found}:
            models.forget(twin, kept["model"])
    told = job["openai"].get("noted") or before
    known = {one["model"] for one in told}
    new = [
        {key: one[key] for key in ("model", "step", "noted")}
        for one in found
        if one["model"] not in known
    ]
    _change(twin, job, checkpoints=found, noted=[*told, *new])


def publish(twin: Twin, job: Body, run: RunDir) -> None:
    """Make the fine-tuned model known, and the table of its training. Can be done twice."""
    note_checkpoints(twin, job, run)
    own = job["openai"]
    models.remember(
        twin,
        own["tuned"],
        job["entry"],
        run.trained,
        job=job["name"],
        simulated=twin.engine.simulates,
    )
    if own["result_files"]:
        return
    kept = [_result(twin, "results.csv", [job_words.table(twin, job).encode()])]
    if twin.controls.settings.weights:
        parts = (run.adapter / name for name in _ADAPTER)
        kept += [_result(twin, part.name, _pieces(part)) for part in parts]
    _change(twin, job, result_files=kept, trained_tokens=_tokens(job, run))


def _result(twin: Twin, name: str, pieces: Iterable[bytes]) -> str:
    """Keep a result file; its id."""
    upload = twin.blobs.begin()
    for piece in pieces:
        upload.write([piece])
    return str(files.keep(twin, upload, name, purpose=files.RESULTS)["id"])


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _change(twin: Twin, job: Body, **fields: Any) -> None:
    """Set some of what is remembered for these doors."""
    with twin.store.transaction():
        latest = twin.store.get("job", job["key"]) or job
        job["openai"] = latest["openai"] | fields
        twin.store.change("job", job["key"], openai=job["openai"])


def _tokens(job: Body, run: RunDir) -> int:
    """Tokens of the rows, as often as they were read."""
    told = [event.data["tokens"] for event in run.events() if "tokens" in event.data]
    rows = run.path / "data" / "training_data.jsonl"
    counted = told[-1] if told else rows.stat().st_size // _TOKEN_BYTES
    return int(counted * job["openai"]["numbers"]["n_epochs"])
