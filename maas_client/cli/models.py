"""What `maas models` says: the catalogue as a table, and one model with all that is known of it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from maas_client.errors import NotFoundError
from maas_client.spec.catalog import find_model, find_outsider, token_facts, whole
from maas_client.spec.catalog_entry import ModelEntry, Price
from maas_client.spec.catalog_file import near
from maas_client.spec.job import ModelInput

UNKNOWN = "unknown"

Rows = Iterator[tuple[str, str]]


def table() -> Iterator[tuple[str, ...]]:
    """A line for each model: name, size, context, where it is tuned, retired, what to use instead."""
    for entry in whole().models.values():
        yield (
            entry.name,
            f"{entry.parameters / 1e9:.1f} B",
            f"{entry.context:,}",
            _tuned(entry),
            str(entry.retired or ""),
            entry.replacement or "",
        )


def outsiders() -> Iterator[str]:
    """A sentence for each model that is known and not done here."""
    for outsider in whole().outsiders.values():
        yield f"{outsider.name}: {outsider.why}."


def listed() -> list[dict[str, Any]]:
    """The catalogue for programs, as a list of models."""
    return [as_json(entry) for entry in whole().models.values()]


def as_json(entry: ModelEntry) -> dict[str, Any]:
    """Everything of one model, its tokens too, as JSON can hold it."""
    facts = token_facts(entry)
    tokens = asdict(facts) | {"tokens": facts.all_tokens()}
    del tokens["numbered"]
    whole_of_it = {"asset": entry.asset_id(), **asdict(entry), "tokenizer": tokens}
    return json.loads(json.dumps(whole_of_it, default=str))  # type: ignore[no-any-return]


def find(name: str) -> ModelEntry:
    """The model of that name, or of the asset that a job file names.

    Raises:
        NotFoundError: there is none, or it is not done here; with the nearest name or the next step.
    """
    if name.startswith("azureml:"):
        name = ModelInput(path=name).asset_name
    entry = find_model(name)
    if entry is not None:
        return entry
    if (outsider := find_outsider(name)) is not None:
        raise NotFoundError(
            f"{outsider.name} ({outsider.hub_id}) is not done here: {outsider.why}",
            hint=outsider.instead,
        )
    known = whole()
    hint = near(name, (*known.models, *known.outsiders)) or "`maas models` lists them."
    raise NotFoundError(f"there is no model {name}", hint=hint)


def described(entry: ModelEntry, *, today: dt.date) -> Rows:
    """All that is known of a model, a fact a line, in words."""
    facts, shape = token_facts(entry), entry.shape
    yield "model", entry.name
    yield "asset", entry.asset_id()
    yield "versions", ", ".join(entry.versions)
    yield "weights", entry.hub_id
    yield "license", entry.license
    yield from _end(entry, today)
    yield "parameters", f"{entry.parameters:,} ({entry.architecture})"
    experts = f", {shape.experts} experts" if shape.experts > 1 else ""
    yield (
        "shape",
        f"hidden {shape.hidden:,}, {shape.layers} layers, {shape.heads} heads ({shape.kv_heads} for keys "
        f"and values), ffn {shape.ffn:,}{experts}, vocabulary {shape.vocabulary:,}"
        f"{', output tied to it' if shape.tied else ''}",
    )
    yield "context", f"{entry.context:,} tokens"
    yield "longest answer", f"{entry.max_output:,} tokens" if entry.max_output else UNKNOWN
    yield "LoRA on", ", ".join(entry.lora_targets)
    yield "tokenizer", f"{facts.name}: {facts.pieces}"
    ids = facts.all_tokens()
    yield "begins", _token(facts.bos, ids)
    yield "text ends", _token(facts.eos, ids)
    yield "turn ends", _token(entry.end_token, ids)
    yield "answer stops", ", ".join(_token(token, ids) for token in entry.stop_tokens)
    yield "padding", _token(facts.pad, ids)
    yield "special", ", ".join(_token(token, ids) for token in facts.tokens)
    yield "strips", _strips(facts.strip_left, facts.strip_right)
    yield "template", entry.template
    yield "tuned", _tuned(entry)
    yield "tuned in", ", ".join(entry.tuning_regions) or "no region"
    yield "deployed in", ", ".join(entry.deploy_regions) or "no region"
    yield "machine", _machine(entry.minimum_sku)
    yield "machines", ", ".join(entry.finetune_skus) or UNKNOWN
    yield (
        "defaults",
        ", ".join(f"{key} {value}" for key, value in entry.defaults.items()) or UNKNOWN,
    )
    yield (
        "bounds",
        ", ".join(f"{k} {low:g} to {high:g}" for k, (low, high) in entry.bounds.items())
        or (UNKNOWN),
    )
    yield from _price(entry.price)
    unsure = (*entry.unverified, *(f"{facts.name} {what}" for what in facts.unverified))
    yield "not confirmed", ", ".join(unsure) or "nothing"
    if entry.note:
        yield "note", entry.note
    yield "written in", entry.origin


def _end(entry: ModelEntry, today: dt.date) -> Rows:
    if entry.retired is None:
        yield "retired", "no date is known"
        return
    verb = "since" if entry.is_retired(today) else "from"
    yield "retired", f"{verb} {entry.retired}"
    yield "use instead", entry.replacement or UNKNOWN


def _price(price: Price | None) -> Rows:
    def dollars(value: float | None, unit: str) -> str:
        return UNKNOWN if value is None else f"{value:g} USD {unit}"

    million = "for a million tokens"
    given = price or Price(source="", date=dt.date.min)
    yield "price, read", dollars(given.input_usd, million)
    yield "price, written", dollars(given.output_usd, million)
    yield "price, trained", dollars(given.training_usd, million)
    yield "price, hosting", dollars(given.hosting_usd, "an hour")
    if price is not None:
        yield "prices from", f"{price.source}, read {price.date}; they change: see your portal"


def _tuned(entry: ModelEntry) -> str:
    places = [
        word
        for word, there in (("serverless", entry.serverless), ("managed compute", entry.managed))
        if there
    ]
    return ", ".join(places) or "on this machine only"


def _token(token: str, ids: dict[str, int]) -> str:
    return f"{token} {ids[token]}"


def _strips(left: tuple[str, ...], right: tuple[str, ...]) -> str:
    sides = (("before", left), ("behind", right))
    said = [f"white space {side} {' '.join(tokens)}" for side, tokens in sides if tokens]
    return "; ".join(said) or "no white space"


def _machine(sku: str) -> str:
    if not sku:
        return UNKNOWN
    cpus, gpus, memory, gpu_memory = sku.split("|")
    cards = "1 GPU" if gpus == "1" else f"{gpus} GPUs"
    return f"at least {cpus} vCPUs, {memory} GB, {cards} with {gpu_memory} GB together"
