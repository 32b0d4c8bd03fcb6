"""Everything that reaches the terminal: rich for people, JSON for programs. The only file that prints."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maas_client.cli.tables import counted, escaped, facts, table, values
from maas_client.errors import MaasError

if TYPE_CHECKING:
    from rich.console import Console

    from maas_client.jobs import Endpoint, Event, Job
    from maas_client.plan import Plan
    from maas_client.serving import Answer
    from maas_client.settings import TargetSettings
    from maas_client.spec.dataset import DatasetReport
    from maas_client.spec.rundir import RunDir
    from maas_client.targets.base import Finding, Target

_SECRET = ("identity_header", "api_key")


def line(text: str) -> None:
    """One line for people."""
    print(text, flush=True)


def data(found: Any) -> None:
    """What a program asked for."""
    _json(found)


def done(text: str, *, as_json: bool) -> None:
    _json({"done": text}) if as_json else line(text)


def hint(text: str, *, as_json: bool) -> None:
    """What to do next; programs know, so they are spared."""
    if not as_json:
        print(text, file=sys.stderr, flush=True)


def warning(text: str) -> None:
    """A sentence on stderr, where JSON is not."""
    print(f"warning: {text}", file=sys.stderr)


def error(problem: MaasError, *, as_json: bool) -> None:
    """A failure, with every fault and the next step."""
    if as_json:
        _json({"error": problem.to_json()})
        return
    print(f"error: {problem.message}", file=sys.stderr)
    for fault in problem.problems:
        print(f"  {fault}", file=sys.stderr)
    request = getattr(problem, "request_id", "")
    if request:
        print(f"request id: {request}", file=sys.stderr)
    if problem.hint:
        print(problem.hint, file=sys.stderr)
    sys.stderr.flush()


def closed_pipe() -> int:
    """The reader went away (`maas jobs logs … | head`): nobody to tell."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def dataset(report: DatasetReport, *, as_json: bool) -> None:
    if as_json:
        _json(report.to_json())
        return
    for problem in report.problems:
        line(f"{report.path}: {problem}")
    for remark in report.warnings:
        line(f"{report.path}: remark: {remark}")
    rows = counted(report.rows, "row")
    if report.ok:
        line(f"{report.path}: {rows}, all good ({counted(report.turns, 'answer')} to learn)")
        return
    if not report.bad_rows:
        line(f"{report.path}: the file cannot be used")
        return
    rest = report.bad_rows - len({problem.line for problem in report.problems})
    more = f"; {rest:,} more bad rows are not listed" if rest > 0 else ""
    line(f"{report.path}: {report.bad_rows:,} of {rows} are bad{more}")


def plan(ready: Plan, *, as_json: bool) -> None:
    """The whole plan."""
    if as_json:
        _json(ready.to_json())
        return
    console = _console()
    console.print(facts(ready))
    console.print(values(ready.hyperparameters))
    for warning in ready.warnings:
        console.print(f"[yellow]warning:[/] {escaped(warning)}")


def plan_brief(ready: Plan, *, as_json: bool) -> None:
    """What is worth knowing before a job starts: its warnings and its size."""
    if as_json:
        return
    steps = counted(ready.steps, "step") if ready.steps else "steps unknown"
    rows = counted(ready.training.report.rows, "row") if ready.training.report else "rows elsewhere"
    line(f"plan: {ready.job.model.asset_name} on {ready.target}, {rows}, {steps}")
    for warning in ready.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def refused(job_file: Path, target: Target) -> None:
    """The values of a job that the target refuses, the refused ones marked."""
    from maas_client.plan import resolve
    from maas_client.spec.loading import load_job

    job = load_job(job_file)
    _console().print(values(resolve(job, target.limits(job))))


def jobs(found: Sequence[Job], *, as_json: bool) -> None:
    if as_json:
        _json([job.to_json() for job in found])
        return
    sheet = table("job", "status", "created", "model", "registered as")
    for entry in found:
        sheet.add_row(
            entry.id,
            _status(entry),
            _when(entry.created_at),
            entry.model.rpartition("/models/")[2].replace("/versions/", ":") or entry.model,
            entry.output_model or "",
        )
    _console().print(sheet)


def job(entry: Job, *, as_json: bool) -> None:
    if as_json:
        _json(entry.to_json())
        return
    rows = {
        "job": entry.id,
        "status": _status(entry),
        "target": entry.target,
        "model": entry.model,
        "trained": entry.base,
        "created": _when(entry.created_at),
        "ended": _when(entry.ended_at),
        "registered as": entry.output_model,
        "look at": entry.url,
        "reason": entry.error,
    }
    for key, value in rows.items():
        if value:
            line(f"{key:14} {value}")


def job_end(entry: Job, *, as_json: bool) -> None:
    """How it ended; a failure with its reason."""
    if as_json:
        _json({"job": entry.to_json()})
        return
    reason = f": {entry.error}" if entry.error else ""
    line(f"job {entry.id} {_status(entry)}{reason}")


def event(entry: Event, *, as_json: bool) -> None:
    if as_json:
        _json(entry.to_json())
        return
    clock = time.strftime("%H:%M:%S", time.localtime(entry.at))
    line(f"{clock}  {entry.message}")


def run_dir(run: RunDir, *, as_json: bool) -> None:
    if as_json:
        _json({"run_dir": str(run.path), "adapter": str(run.adapter), "tracking": run.tracking()})
        return
    line(f"files: {run.path}")
    for place in run.tracking().get("places", ()):
        line(f"tracked: {place}")
    if trouble := run.tracking().get("trouble"):
        warning(f"{trouble}; `maas track {run.path}` tells it again")


def tracked(places: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        _json({"tracked": list(places)})
        return
    for place in places:
        line(f"tracked: {place}")


def evaluation(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        _json(found)
        return
    before, after = (
        {key: each[key] for key in ("loss",) if key in each} | each["metrics"]
        for each in found["results"]
    )
    tokens = f", {found['tokens']:,} trained tokens" if "tokens" in found else ""
    what = f"{counted(found['rows'], 'question' if 'benchmark' in found else 'row')}{tokens}"
    line(f"{what}, on {found['base']}")
    if "prompt_format" in found:
        line(f"asked through {found['prompt_format']}")
    sheet = table("", "before", "after", "change")
    for name, value in before.items():
        now = after[name]
        change = f"{(now / value - 1) * 100:+.1f} %" if value else f"{now - value:+.4f}"
        sheet.add_row(name, f"{value:.4f}", f"{now:.4f}", change)
    _console().print(sheet)
    hint(found["file"], as_json=False)


def models(
    rows: Iterable[Sequence[str]], others: Iterable[str], *, whole: Any, as_json: bool
) -> None:
    if as_json:
        _json(whole)
        return
    sheet = table("model", "size", "context", "tuned", "retired", "use instead")
    for row in rows:
        sheet.add_row(*row)
    _console().print(sheet)
    line("Not done here:")
    for sentence in others:
        line(f"  {sentence}")


def model(facts: Iterable[tuple[str, str]], *, whole: Any, as_json: bool) -> None:
    if as_json:
        _json(whole)
        return
    for key, value in facts:
        line(f"{key:16} {value}")


def endpoints(found: Sequence[Endpoint], *, as_json: bool) -> None:
    if as_json:
        _json([entry.to_json() for entry in found])
        return
    sheet = table("endpoint", "state", "model", "since")
    for entry in found:
        sheet.add_row(entry.name, entry.state, entry.model, _when(entry.created_at))
    _console().print(sheet)


def endpoint(entry: Endpoint, *, as_json: bool) -> None:
    if as_json:
        _json(entry.to_json())
        return
    line(f"{entry.name}  {entry.state}  {entry.model}\n{entry.scoring_uri}")


def billing(target: str, *, as_json: bool) -> None:
    """Said wherever somebody pays by the hour."""
    hint(
        f"Hosting is billed by the hour until `maas undeploy NAME --target {target}`.",
        as_json=as_json,
    )


def keys(pair: tuple[str, str], *, as_json: bool) -> None:
    if as_json:
        _json({"primary": pair[0], "secondary": pair[1]})
        return
    line(f"primary    {pair[0]}\nsecondary  {pair[1]}")


def answer(given: Answer) -> None:
    _json(asdict(given))


def stream(pieces: Iterator[str]) -> None:
    """An answer as it is made."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def targets(found: Mapping[str, TargetSettings], *, as_json: bool) -> None:
    """Targets with their settings; secrets are not among what is shown."""
    rows = {
        name: {key: value for key, value in asdict(entry).items() if key not in _SECRET}
        for name, entry in found.items()
    }
    if as_json:
        _json(rows)
        return
    sheet = table("target", "kind", "where")
    for name, row in rows.items():
        if "runs" in row:
            sheet.add_row(name, "local", row["runs"])
        elif "namespace" in row:
            sheet.add_row(
                name, "kaito", f"{row['context'] or 'current context'}/{row['namespace']}"
            )
        elif "endpoint" in row:
            sheet.add_row(name, "foundry", row["endpoint"])
        else:
            kind = "azure_ml, a mock" if row["resource_manager"] else "azure_ml"
            sheet.add_row(name, kind, f"{row['resource_group']}/{row['workspace']}")
    _console().print(sheet)


def findings(found: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        _json([asdict(finding) for finding in found])
        return
    for finding in found:
        step = f"  -> {finding.next_step}" if finding.next_step else ""
        line(f"{'ok' if finding.ok else 'NO':3} {finding.name:24} {finding.detail}{step}")


def _status(entry: Job) -> str:
    return f"{entry.status} (simulated)" if entry.simulated else str(entry.status)


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def trouble(text: str) -> None:
    """Something that passes, beside what is printed."""
    print(text, file=sys.stderr, flush=True)


def _json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False), flush=True)


def console() -> Console:
    """The terminal, or the pipe, for what is more than lines."""
    return _console()


def _console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120  # a pipe has no width; a path must not be folded
    return Console(width=width)
