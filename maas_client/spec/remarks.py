"""What a plan warns about: values, rows and tokens that are allowed, and perhaps not meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from maas_client.spec.inputs import BaseInfo, DataPlan, Lines, SplitPlan, TokenCount
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits
from maas_client.spec.values import Resolved, as_text


def on_base(job: FineTuningJob, base: BaseInfo | None) -> Iterator[str]:
    """Weights that are not the job's."""
    if base and base.stand_in:
        yield f"Trains {base.label}, not {job.model.asset_name}."


def on_values(resolved: Iterable[Resolved]) -> Iterator[str]:
    """Values that the target replaces, and given ones that change nothing."""
    entries = list(resolved)
    for entry in entries:
        if entry.source == "target" and entry.value is not None:
            yield f"{entry.key}: {entry.note}; {as_text(entry.value)} is used."
    for entry in entries:
        if entry.treatment == "ignored" and entry.source == "job file":
            yield f"{entry.key} in the job file is ignored: {entry.note}."


def on_data(name: str, data: DataPlan | None, *, split: bool) -> Iterator[str]:
    """What checking a file remarked."""
    if data is None or data.report is None:
        return
    if data.converted_from and not split:
        yield f"{name}: {data.converted_from} is not JSONL; {data.path} is sent, made of it."
    if data.report.warnings:
        first, count = data.report.warnings[0], len(data.report.warnings)
        yield f"{name}: {count} remark{'s' if count > 1 else ''}, the first on {first}."


def on_split(split: SplitPlan | None, validation: DataPlan | None) -> Iterator[str]:
    """A split that came out far from what was asked for, as questions are not torn apart."""
    if split is None or validation is None or validation.report is None:
        return
    asked, held = max(1, round(split.rows * split.fraction)), validation.report.rows
    if held != asked:
        yield (
            f"validation split: {held:,} rows instead of {asked:,}: rows that share a question stay "
            "together."
        )


def on_tokens(
    name: str, data: DataPlan | None, tokens: TokenCount | None, limits: Limits
) -> Iterator[str]:
    """What the tokenizer and the chat template make of the rows."""
    if tokens is None or data is None:
        return
    if data.converted_from:
        name = f"{name} ({data.path})"  # lines are those of this file
    cut, inside = tokens.truncated_rows, tokens.cut_answers
    if inside.count:
        yield (
            f"{name}: cut at max_seq_length inside what should be learned, so that its end is not "
            f"trained: {inside}. The longest row has {tokens.longest:,} tokens."
        )
    if cut > inside.count:
        yield f"{name}: cut at max_seq_length behind the last answer: {Lines(cut - inside.count)}."
    if tokens.open_ends.count:
        yield (
            f"{name}: the chat template writes no end token after an answer, so that the model will "
            f"not learn to stop: {tokens.open_ends}."
        )
    if tokens.deaf_ends.count:
        yield (
            f"{name}: an end token is trained at which the model does not stop, for its "
            f"generation_config.json does not name it: {tokens.deaf_ends}."
        )
    if tokens.spelled.count:
        yield (
            f"{name}: words spell a special token of the model, and become it: {tokens.spelled}."
        )
    yield from _on_system_turns(name, tokens, limits)


def _on_system_turns(name: str, tokens: TokenCount, limits: Limits) -> Iterator[str]:
    if not tokens.system_rows.count:
        return
    where = f"{name}: the chat template has no place for the system turn of {tokens.system_rows}"
    if limits.hosts:
        yield f"{where}. What the service does with it is the service's; it may be lost."
    else:
        yield f"{where}; it is put before the first user turn. Ask the model in the same way."
