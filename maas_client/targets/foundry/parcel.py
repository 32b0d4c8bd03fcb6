"""What a job of this wire left, in the shape of a run directory; and what is kept of its plan for that."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maas_client.errors import RunDirError, TargetError
from maas_client.jobs import Checkpoint, Event, Job
from maas_client.plan import Plan
from maas_client.spec.home import home
from maas_client.spec.loading import dump_job
from maas_client.spec.rundir import (
    RunDir,
    RunStatus,
    append_line,
    file_digest,
    read_json,
    write_json,
    write_whole,
)
from maas_client.targets.foundry import words
from maas_client.transport import Transport

_CHECKPOINTS = "checkpoints.json"
_RESULTS = "results.csv"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_MOST = 16 * 1024**3
"""Bytes that a job's files may have, fetched or unpacked: a large model's adapter is far smaller."""
_MOST_TABLE = 256 * 1024**2
"""The same of a result file, which is read whole."""
_MOST_MEMBERS = 10_000
_SWELL = 100
"""How many times its size an archive may unpack to: weights hardly pack, a bomb packs a thousandfold."""
_SMALL = 64 * 1024**2
"""What any archive may unpack to."""


def remember(endpoint: str, job_id: str, plan: Plan) -> None:
    """Keep the plan beside the user's cache: the service keeps neither file nor plan."""
    job = plan.job
    for key, data in (("training_data", plan.training), ("validation_data", plan.validation)):
        given = getattr(job, key)
        if data is not None and given is not None:
            job = job.model_copy(update={key: given.model_copy(update={"path": data.path})})
    write_json(_kept(endpoint, job_id), {"job": dump_job(job), "plan": plan.to_json()})


def fetch(line: Transport, ids: Iterable[str], folder: Path) -> list[Path]:
    """Download result files; their names are the service's.

    Raises:
        TargetError: they are larger than what a job leaves.
    """
    found, left = [], _MOST
    for number, file_id in enumerate(ids):
        stored = words.stored_file(line.get(f"/files/{file_id}"))
        name = Path(stored.name).name
        file = folder / str(number) / (name if name not in ("", "..") else "file")
        file.parent.mkdir(parents=True)
        with file.open("wb") as stream:
            for chunk in line.read(f"/files/{file_id}/content"):
                if (left := left - len(chunk)) < 0:
                    raise _too_large(f"{stored.name} ({file_id})", "the job's files", _MOST)
                stream.write(chunk)
        found.append(file)
    return found


def unpack(
    run: RunDir,
    files: Sequence[Path],
    raw: Mapping[str, Any],
    job: Job,
    *,
    endpoint: str,
    events: Iterable[Event],
    kept: Sequence[Checkpoint],
) -> None:
    """Fill the run directory.

    Args:
        run: an empty run directory.
        files: the job's result files.
        raw: the job as the service shows it.
        job: the same in our words.
        endpoint: the service's address.
        events: what happened.
        kept: the checkpoints that the service still has.
    """
    times = {}
    for event in events:
        append_line(run.events_file, event.to_json())
        if event.kind == "metric":
            times[event.data.get("step")] = event.at
    _write_job(run, raw, job, endpoint)
    for file in files:
        _place(run, file, times, job.ended_at or 0.0)
    write_json(run.path / _CHECKPOINTS, {"checkpoints": [entry.to_json() for entry in kept]})
    run.write_status(
        RunStatus(
            job.status,
            error=job.error,
            started_at=job.created_at,
            ended_at=job.ended_at,
            simulated=job.simulated,
            base=job.base,
        )
    )


def seal(run: RunDir, job: Job, origin: Mapping[str, str]) -> None:
    """Say where all this is from, with a digest of every file."""
    write_json(run.origin_file, dict(origin))
    files = sorted(file for file in run.path.rglob("*") if file.is_file())
    write_json(
        run.manifest_file,
        {
            "simulated": job.simulated,
            "job": job.id,
            "model": job.output_model,
            "outputs": {str(file.relative_to(run.path)): file_digest(file) for file in files},
        },
    )


def _write_job(run: RunDir, raw: Mapping[str, Any], job: Job, endpoint: str) -> None:
    try:
        kept = read_json(_kept(endpoint, job.id))
    except (
        RunDirError
    ):  # another machine submitted it: the job file is made of what the service says
        write_whole(run.job_file, dump_job(words.job_file(raw)).encode())
        return
    write_whole(run.job_file, kept["job"].encode())
    write_json(run.plan_file, kept["plan"])


def _kept(endpoint: str, job_id: str) -> Path:
    place = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
    return home() / "foundry" / place / f"{Path(job_id).name}.json"


def _place(run: RunDir, file: Path, times: Mapping[Any, float], at: float) -> None:
    """Put one result file where it belongs, by what it is."""
    if file.suffix == ".csv":
        if file.stat().st_size > _MOST_TABLE:
            raise _too_large(file.name, "a result file", _MOST_TABLE)
        for row in words.results(file.read_bytes()):
            append_line(run.metrics_file, {"at": times.get(row.get("step"), at), **row})
        shutil.move(file, run.path / _RESULTS)
    elif file.name in _ADAPTER:
        run.adapter.mkdir(exist_ok=True)
        shutil.move(file, run.adapter / file.name)
    elif zipfile.is_zipfile(file) or tarfile.is_tarfile(file):
        _unpack_adapter(run, file)
    else:
        other = run.path / "results"
        other.mkdir(exist_ok=True)
        shutil.move(file, other / f"{file.parent.name}-{file.name}")


def _unpack_adapter(run: RunDir, file: Path) -> None:
    """An archive with an adapter somewhere in it."""
    folder = file.parent / "unpacked"
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            _bound(file, (member.file_size for member in packed.infolist()))
            packed.extractall(folder)  # noqa: S202 - zipfile keeps to the folder and to those sizes
    else:
        with tarfile.open(file) as tape:
            _bound(file, (member.size for member in tape))
            plain = [member for member in tape if member.isfile() or member.isdir()]
            tape.extractall(folder, plain, filter="data")  # no links: the folder is moved later
    configs = sorted(folder.rglob(_ADAPTER[0]), key=lambda found: len(found.parts))
    if not configs:
        raise TargetError(f"{file.name} holds no adapter: no {_ADAPTER[0]} is in it")
    shutil.move(configs[0].parent, run.adapter)


def _bound(file: Path, sizes: Iterable[int]) -> None:
    """Look at what an archive says that is in it, before any of it is written.

    Raises:
        TargetError: it is more than an adapter, as of an archive that is made to fill a disk.
    """
    most = min(_MOST, max(_SMALL, _SWELL * file.stat().st_size))
    total = 0
    for count, size in enumerate(sizes, 1):
        total += size
        if total > most or count > _MOST_MEMBERS:
            raise _too_large(
                file.name, f"an archive of {file.stat().st_size:,} bytes, unpacked,", most
            )


def _too_large(what: str, kind: str, most: int) -> TargetError:
    return TargetError(
        f"{what} is not taken: {kind} may have at most {most:,} bytes",
        hint="Nothing was kept. If it is what you expect, download it with the service's own tools.",
    )
