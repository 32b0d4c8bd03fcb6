"""Whether a run's files are what it left, and whether the same plan makes the same bytes again."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from maas_client.errors import RunDirError, RunnerError
from maas_client.jobs import JobStatus
from maas_client.plan import Plan, plan_from_json
from maas_client.spec.rundir import RunDir, file_digest, read_json
from maas_client.targets import runner

State = Literal["same", "changed", "missing", "extra"]
_CLOCK = ("at", "tokens_per_second", "seconds_left")
_CIRCUMSTANCES = ("machine", "cpu", "threads", "python")
_PROMISE = "the same bytes are promised with the same processor, threads and versions only"


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """One file, held against the manifest or against the run that was made again."""

    name: str
    state: State


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of verifying a run."""

    run_dir: str
    files: tuple[FileVerdict, ...]
    rerun: bool = False
    """Whether the plan was run again, and `files` are held against what that made."""
    notes: tuple[str, ...] = ()
    """What differs in the circumstances, and what is not promised for it."""
    first_difference: str | None = None
    """Where the losses of the two runs part, in words."""
    kept: str | None = None
    """Where the other run's files are, if they differ."""

    @property
    def ok(self) -> bool:
        return bool(self.files) and all(file.state == "same" for file in self.files)

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify(run_dir: str | Path, *, rerun: bool = False) -> Verdict:
    """Hold a run's files against the digests in its manifest; or run its plan again, and compare the bytes.

    Args:
        run_dir: a run that has ended well.
        rerun: train the same plan once more, beside it. Files that are not as the manifest says are
            reported before anything runs.

    Raises:
        RunDirError: there is no manifest to hold it against, or the run was simulated.
        RunnerError: the plan cannot be run again; the message says why.
    """
    run = RunDir(Path(run_dir))
    if not run.manifest_file.exists():
        raise RunDirError(
            f"{run.path} has no manifest.json: it is no local run, or it has not ended well",
            hint="Run it to its end first; a hosted job's files have no digests to hold them against.",
        )
    manifest = read_json(run.manifest_file)
    held = Verdict(str(run.path), tuple(_held_against(run, manifest)))
    if not rerun or not held.ok:
        return held
    if manifest.get("simulated"):
        raise RunDirError(f"{run.path} was simulated: there is no training to do again")
    return _rerun(run, manifest)


def _held_against(run: RunDir, manifest: Mapping[str, Any]) -> Iterator[FileVerdict]:
    expected = {**manifest["outputs"]}
    for name, file in (("plan", run.plan_file), ("job", run.job_file)):
        if name in manifest["inputs"]:
            expected[file.name] = manifest["inputs"][name]["sha256"]
    for name, digest in expected.items():
        yield FileVerdict(name, _state(run.path / name, digest))
    for name in ("training_data", "validation_data"):
        noted = manifest["inputs"].get(name)
        if noted is not None:
            yield FileVerdict(noted["path"], _state(Path(noted["path"]), noted["sha256"]))
    there = {str(file.relative_to(run.path)) for file in run.outputs()}
    for name in sorted(there - expected.keys()):
        yield FileVerdict(name, "extra")


def _state(file: Path, digest: str) -> State:
    if not file.is_file():
        return "missing"
    return "same" if file_digest(file) == digest else "changed"


def _rerun(run: RunDir, manifest: Mapping[str, Any]) -> Verdict:
    runner.require()
    place = Path(mkdtemp(prefix=f"{run.path.name}.verify-", dir=run.path.resolve().parent))
    again = RunDir(place)
    differ = True
    try:
        _train(run, again)
        verdict = _compared(run, manifest, again)
        differ = not verdict.ok
        return verdict
    finally:
        if not (differ and again.manifest_file.exists()):
            shutil.rmtree(place, ignore_errors=True)


def _train(run: RunDir, again: RunDir) -> None:
    """Run the plan in a folder of its own, to its end."""
    shutil.copy(run.plan_file, again.plan_file)
    child = runner.spawn(("train", "--quiet", str(again.path)), log=again.log_file)
    try:
        child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    status = again.read_status()
    if status is None or status.status is not JobStatus.SUCCEEDED:
        why = status.error if status is not None and status.error else "it ended without a word"
        raise RunnerError(f"{run.path} cannot be run again: {why}")


def _compared(run: RunDir, manifest: Mapping[str, Any], again: RunDir) -> Verdict:
    other = read_json(again.manifest_file)
    before, now = manifest["outputs"], other["outputs"]
    files = tuple(
        FileVerdict(name, _pair_state(before.get(name), now.get(name)))
        for name in sorted({*before, *now})
    )
    ok = all(file.state == "same" for file in files)
    changes = tuple(_changes(manifest, other))
    notes = changes
    if not ok:
        plan = plan_from_json(read_json(run.plan_file))
        notes = (*changes, _reason(changes, plan))
    return Verdict(
        str(run.path),
        files,
        rerun=True,
        notes=notes,
        first_difference=None if ok else _first_difference(run, again),
        kept=None if ok else str(again.path),
    )


def _pair_state(before: str | None, now: str | None) -> State:
    if before is None or now is None:
        return "extra" if before is None else "missing"
    return "same" if before == now else "changed"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in _CIRCUMSTANCES:
        if key in before and before[key] != now.get(key):
            yield f"{key} was {before[key]}, and is {now.get(key)}"
    for package, version in before.get("packages", {}).items():
        if (here := now.get("packages", {}).get(package)) != version:
            yield f"{package} was {version}, and is {here}"


def _reason(changes: tuple[str, ...], plan: Plan) -> str:
    if changes:
        return f"the circumstances are not those of the run, so nothing was promised: {_PROMISE}"
    if not plan.values.get("enable_full_determinism"):
        return f"{_PROMISE}; enable_full_determinism finds a kernel that does not keep it"
    return f"this breaks the promise: {_PROMISE}"


def _first_difference(run: RunDir, again: RunDir) -> str | None:
    for before, now in zip(run.metrics(), again.metrics(), strict=False):
        ours, theirs = (
            {key: value for key, value in metric.items() if key not in _CLOCK}
            for metric in (before, now)
        )
        for key in ours:
            if ours[key] != theirs.get(key):
                return f"step {before.get('step')}: {key} was {ours[key]}, and is {theirs.get(key)}"
    return None
