"""Tables for people: the form they share, and what a plan says in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from maas_client.plan import Plan, Resolved
    from maas_client.spec.dataset import DatasetReport

UNKNOWN = "unknown"


def table(*columns: str) -> Table:
    """An empty table under these heads, in the one form that all of them have."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        # The first is a name or an id, which people copy: it stays in one piece.
        made.add_column(column, overflow="fold", no_wrap=place == 0)
    return made


def escaped(text: str) -> str:
    """Text in which rich sees no markup."""
    from rich.markup import escape

    return escape(text)


def counted(number: int, word: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def facts(ready: Plan) -> Table:
    """What a plan is about: model, data, tokens, steps and what is foreseen, a fact a row."""
    made = table(f"plan for {ready.target}", "")
    training, tokens, forecast = ready.training, ready.tokens, ready.forecast
    rows = {
        "model": ready.job.model.path,
        "trained from": ready.base.label if ready.base else None,
        "base digest": f"sha256 {ready.base.digest[:16]}…" if ready.base else None,
        "training data": f"{training.path} ({_rows(training.report)})",
        "validation data": f"{ready.validation.path} ({_rows(ready.validation.report)})"
        if ready.validation
        else "none",
        "validation split": f"{ready.split.fraction:g} of {ready.split.rows:,} rows in "
        f"{ready.split.groups:,} questions, seed {ready.split.seed}, of {ready.split.path}"
        if ready.split
        else None,
        "tokens": f"{tokens.total:,} in an epoch, {tokens.trained:,} trained, longest row {tokens.longest:,}"
        if tokens
        else f"{UNKNOWN}: the model's tokenizer is not on this machine",
        "counted by": tokens.counted_by if tokens else None,
        "steps": f"{ready.steps:,}" if ready.steps else UNKNOWN,
        "seed": str(ready.seed),
        "threads": str(ready.threads) if ready.threads else None,
        "cost": f"{forecast.cost_usd:.2f} USD" if forecast.cost_usd is not None else UNKNOWN,
        "memory": _memory(ready),
        "spares memory": ready.thrift.words if ready.thrift else None,
        "time": f"{forecast.seconds:.0f} s" if forecast.seconds is not None else UNKNOWN,
    }
    for key, value in rows.items():
        if value is not None:
            made.add_row(key, escaped(value))
    return made


def _memory(ready: Plan) -> str:
    from maas_client.spec.memory import size_words

    forecast = ready.forecast
    if forecast.memory_bytes is None:
        return UNKNOWN
    parts = {part: count for part, count in (forecast.memory or {}).items() if count > 10**7}
    words = ", ".join(f"{part} {size_words(count)}" for part, count in parts.items())
    most = f" of at most {size_words(ready.max_memory)}" if ready.max_memory else ""
    return f"about {size_words(forecast.memory_bytes)}{most} ({words})"


def values(resolved: Sequence[Resolved]) -> Table:
    """Every hyperparameter with what becomes of it, and where its value is from."""
    made = table("hyperparameter", "value", "", "from")
    colours = {"given": "green", "default": "dim", "ignored": "yellow", "refused": "red"}
    for entry in resolved:
        colour = colours[entry.treatment]
        source = entry.source + (f" ({entry.note})" if entry.note else "")
        value = str(entry.value).lower() if isinstance(entry.value, bool) else str(entry.value)
        made.add_row(entry.key, value, f"[{colour}]{entry.treatment}[/]", escaped(source))
    return made


def _rows(report: DatasetReport | None) -> str:
    return counted(report.rows, "row") if report else "elsewhere, not looked at"
