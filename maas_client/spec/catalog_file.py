"""catalog.toml and a user's own maas-models.toml -> Catalog, strictly: every fault by file, entry and key."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from maas_client.errors import Problem, SettingsError
from maas_client.spec.catalog_entry import Catalog, ModelEntry, Outsider, TokenFacts
from maas_client.spec.home import home
from maas_client.spec.hyperparameters import KNOBS

USER_FILE = "maas-models.toml"
VARIABLE = "MAAS_MODELS"
BUILT_IN = "catalog.toml"

_TABLES = {"model": ModelEntry, "tokenizer": TokenFacts, "other": Outsider}
_OURS = ("name", "origin")
"""Fields that the reader fills in; no file has them."""
_NOT_SHARED = ("retired", "replacement", "price", "unverified")
"""What is the service's word on one model, and does not hold for another that is like it."""

_SKU = re.compile(r"\d+\|\d+\|\d+\|\d+")
_MOST_NUMBERED = 1_000_000
"""Placeholders in a row; more than any vocabulary has tokens."""

Raw = dict[str, Any]
Entry = TypeVar("Entry", ModelEntry, TokenFacts, Outsider)


def load() -> Catalog:
    """The built-in catalogue, and over it the user's own entries.

    Raises:
        SettingsError: the user's file is wrong.
    """
    file = user_file()
    if file is None:
        return _built_in()
    try:
        stat = file.stat()
    except OSError as error:
        raise SettingsError(
            f"{file}: {error.strerror}", hint=f"{VARIABLE} names a file with models of your own."
        ) from error
    return _with_user(file, (stat.st_mtime_ns, stat.st_size))


def user_file() -> Path | None:
    """$MAAS_MODELS; else maas-models.toml here, in a folder above, or in $MAAS_HOME; else none."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().resolve()
    here = Path.cwd()
    places = (*(folder / USER_FILE for folder in (here, *here.parents)), home() / USER_FILE)
    return next((file for file in places if file.is_file()), None)


def template(name: str) -> str:
    """A chat template: one of ours by its name, or a user's by its path."""
    if Path(name).is_absolute():
        return Path(name).read_text(encoding="utf-8")
    return str(_ours(f"{name}.jinja").read_text(encoding="utf-8"))


def _ours(name: str) -> Any:
    return resources.files("maas_client.spec").joinpath("templates", name)


@cache
def _built_in() -> Catalog:
    source = resources.files("maas_client.spec").joinpath(BUILT_IN)
    raw = tomllib.loads(source.read_text(encoding="utf-8"))
    return _catalog(_Reader(BUILT_IN, None), raw, Catalog({}, {}, {}))


@cache
def _with_user(file: Path, touched: tuple[int, int]) -> Catalog:
    """What the file says, read again when it was touched."""
    del touched
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: {error}", hint="It is TOML, in UTF-8.") from error
    return _catalog(_Reader(str(file), file.parent), raw, _built_in())


def _catalog(reader: _Reader, raw: Raw, under: Catalog) -> Catalog:
    reader.check_tables(raw)
    tokenizers = dict(under.tokenizers)
    for name, body in reader.entries(raw, "tokenizer"):
        if (facts := reader.tokenizer(name, body)) is not None:
            tokenizers[name] = facts
    models = dict(under.models)
    for name, body in reader.entries(raw, "model"):
        if (entry := reader.model(name, body, models)) is not None:
            reader.check_model(entry, tokenizers)
            models[entry.name] = entry
    others = dict(under.outsiders)
    for name, body in reader.entries(raw, "other"):
        if (outsider := reader.read(Outsider, f"other.{name}", name, body)) is not None:
            others[name] = outsider
    reader.raise_problems()
    return Catalog(
        models, tokenizers, {name: entry for name, entry in others.items() if name not in models}
    )


class _Reader:
    """Reads one file and gathers what is wrong with it.

    Args:
        source: the file, in words.
        folder: where a user's file lies, and its templates with it; None for ours.
    """

    def __init__(self, source: str, folder: Path | None) -> None:
        self.source, self.folder = source, folder
        self.problems: list[Problem] = []

    def raise_problems(self) -> None:
        if self.problems:
            count = len(self.problems)
            raise SettingsError(
                f"{self.source}: {count} fault{'s' if count > 1 else ''}",
                problems=tuple(self.problems),
                hint="`maas models NAME` shows every key of an entry.",
            )

    def check_tables(self, raw: Raw) -> None:
        tables = ", ".join(f"[{table}.NAME]" for table in _TABLES)
        for key in raw.keys() - _TABLES.keys():
            self._fault(key, f"is unknown; a file has {tables}")

    def entries(self, raw: Raw, table: str) -> Iterator[tuple[str, Raw]]:
        body = raw.get(table, {})
        for name, entry in body.items() if isinstance(body, dict) else [("", None)]:
            if isinstance(entry, dict):
                yield name, entry
            else:
                self._fault(table, f"must be tables, [{table}.NAME]")

    def tokenizer(self, name: str, body: Raw) -> TokenFacts | None:
        facts = self.read(TokenFacts, f"tokenizer.{name}", name, body)
        if facts is None:
            return None
        for row in facts.numbered:
            if row.name.count("{}") != 1 or set(row.name.replace("{}", "")) & {"{", "}"}:
                self._fault(
                    f"tokenizer.{name}.numbered", f"{row.name} must have {{}} once, for a number"
                )
                return None
            if not 0 <= row.count <= _MOST_NUMBERED:
                what = f"has the count {row.count}: 0 to {_MOST_NUMBERED:,} are possible"
                self._fault(f"tokenizer.{name}.numbered", what)
                return None
        known = facts.all_tokens()
        for key in ("bos", "eos", "pad", "strip_left", "strip_right"):
            named = getattr(facts, key)
            for token in (named,) if isinstance(named, str) else named:
                if token not in known:
                    self._fault(f"tokenizer.{name}.{key}", f"{token} is not among its tokens")
        return facts

    def model(self, name: str, body: Raw, models: Mapping[str, ModelEntry]) -> ModelEntry | None:
        """An entry; where it is like another, or takes a known one's place, it says what differs."""
        place = f"model.{name}"
        same = next((known for known in models if known.lower() == name.lower()), None)
        like = body.get("like", same)
        if like is not None and not (isinstance(like, str) and like in models):
            found = near(str(like), models) or f"known: {', '.join(models)}"
            self._fault(f"{place}.like", f"there is no model {like}", found)
            return None
        if same is not None and not body.get("note"):
            self._fault(
                f"{place}.note",
                f"is missing: the entry takes the place of the built-in {same}",
                'say why: note = "…"',
            )
        under = _plain(models[like]) if like is not None else {}
        if same is None:
            under = {key: value for key, value in under.items() if key not in _NOT_SHARED}
        given = {key: value for key, value in body.items() if key != "like"}
        self._complete_template(given)
        entry = self.read(ModelEntry, place, same or name, {**under, **given})
        if entry is None:
            return None
        return replace(entry, origin=self.source if self.folder else "built in")

    def _complete_template(self, body: Raw) -> None:
        """A template that lies beside a user's file is that one."""
        name = body.get("template")
        if self.folder is None or not isinstance(name, str):
            return
        file = self.folder / (name if name.endswith(".jinja") else f"{name}.jinja")
        if file.is_file():
            body["template"] = str(file.resolve())

    def check_model(self, entry: ModelEntry, tokenizers: Mapping[str, TokenFacts]) -> None:
        """Whether what an entry names is there."""
        place = f"model.{entry.name}"
        if not entry.versions:
            self._fault(f"{place}.versions", "names no version")
        if (facts := tokenizers.get(entry.tokenizer)) is None:
            found = near(entry.tokenizer, tokenizers) or f"known: {', '.join(tokenizers)}"
            self._fault(f"{place}.tokenizer", f"there is no tokenizer {entry.tokenizer}", found)
        else:
            ends = [
                ("end_token", entry.end_token),
                *(("stop_tokens", t) for t in entry.stop_tokens),
            ]
            for key, token in ends:
                if token not in facts.all_tokens():
                    self._fault(f"{place}.{key}", f"{token} is not a token of {entry.tokenizer}")
        if not (Path(entry.template).is_absolute() or _ours(f"{entry.template}.jinja").is_file()):
            ours = ", ".join(sorted(Path(str(file)).stem for file in _ours("").iterdir()))
            found = f"ours: {ours}; your own is a .jinja file beside {USER_FILE}"
            self._fault(f"{place}.template", f"there is no template {entry.template}", found)
        self._check_numbers(place, entry)
        self._check_knobs(place, entry)

    def _check_numbers(self, place: str, entry: ModelEntry) -> None:
        """Sizes hold something, and machines are told as the registry tells them."""
        sizes = {"parameters": entry.parameters, "context": entry.context}
        sizes |= {f"shape.{key}": value for key, value in asdict(entry.shape).items()}
        if entry.max_output is not None:
            sizes["max_output"] = entry.max_output
        for key, size in sizes.items():
            if not isinstance(size, bool) and size < 1:
                self._fault(f"{place}.{key}", f"is {size}: it must be 1 or more")
        for key in ("minimum_sku", "inference_minimum_sku"):
            sku = getattr(entry, key)
            if sku and not _SKU.fullmatch(sku):
                what = f'is "{sku}": it must be vCPUs|GPUs|GB of memory|GB of GPU memory, or empty'
                self._fault(f"{place}.{key}", what)

    def _check_knobs(self, place: str, entry: ModelEntry) -> None:
        for table in ("bounds", "defaults"):
            for key in getattr(entry, table).keys() - KNOBS.keys():
                self._fault(f"{place}.{table}.{key}", "is no hyperparameter", near(key, KNOBS))
        for key, (low, high) in entry.bounds.items():
            if not low <= high:
                self._fault(f"{place}.bounds.{key}", f"{low:g} to {high:g} holds no value")

    def read(self, kind: type[Entry], place: str, name: str, body: Raw) -> Entry | None:
        """An entry of one kind, or None where it is at fault."""
        allowed = [entry.name for entry in fields(kind) if entry.name not in _OURS]
        unknown = [key for key in body if key not in allowed]
        for key in unknown:
            self._fault(
                f"{place}.{key}", "is unknown", near(key, allowed) or f"known: {', '.join(allowed)}"
            )
        if unknown:
            return None
        reader: Any = _adapter  # a dataclass without a hash is a type with one, whatever mypy says
        # As JSON, a list is a tuple and a date is a text; nothing else is taken for another.
        text = json.dumps({**body, "name": name}, default=str)
        try:
            entry: Entry = reader(kind).validate_json(text, strict=True)
        except ValidationError as error:
            self._faults(place, error.errors())
            return None
        return entry

    def _faults(self, place: str, found: Sequence[Mapping[str, Any]]) -> None:
        for one in found:
            where = ".".join((place, *map(str, one["loc"])))
            missing = one["type"] == "missing"
            self._fault(where, "is missing" if missing else _words(one["msg"], one["input"]))

    def _fault(self, place: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(f"{place} {what}", hint=hint, code="catalogue"))


@cache
def _adapter(kind: type[Any]) -> Any:
    return TypeAdapter(kind)


def near(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` with the known word as it is written; nothing where none is near."""
    written = {entry.lower(): entry for entry in known}
    match = difflib.get_close_matches(word.lower(), written, n=1, cutoff=0.6)
    return f"did you mean {written[match[0]]}?" if match else ""


def _words(message: str, value: object) -> str:
    return f"is {json.dumps(value, default=str)[:60]}: {message[0].lower()}{message[1:]}"


def _plain(entry: ModelEntry) -> Raw:
    """An entry as its file has it; what is not said there is left out."""
    kept = {key: value for key, value in asdict(entry).items() if key not in (*_OURS, "note")}
    return {key: value for key, value in kept.items() if value is not None}
