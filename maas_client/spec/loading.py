"""YAML -> FineTuningJob, or one SpecError that names every fault with its line and the nearest key."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from maas_client.errors import Problem, SpecError
from maas_client.spec import hyperparameters
from maas_client.spec.job import (
    READ_ONLY_KEYS,
    DataInput,
    FineTuningJob,
    Identity,
    JobOutput,
    JobResources,
    ModelInput,
    QueueSettings,
)

MAX_BYTES = 1024 * 1024
"""A job file is a page of text; a larger one is a mistake, or an attack on the parser."""

_PARTS: Mapping[str, type[BaseModel]] = {
    "model": ModelInput,
    "training_data": DataInput,
    "validation_data": DataInput,
    "outputs": JobOutput,
    "resources": JobResources,
    "queue_settings": QueueSettings,
    "identity": Identity,
}

KeyPath = tuple[str | int, ...]

_TEXT = "tag:yaml.org,2002:str"


def load_job(file: str | Path) -> FineTuningJob:
    """Read a job file.

    Raises:
        SpecError: with every fault in the file, each with line, key, what is allowed and the
            nearest known name.
    """
    path = Path(file)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(
                f"{path}: {path.stat().st_size:,} bytes is too large for a job file",
                hint="Did you mean to pass this as training_data?",
            )
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path}: not UTF-8 text (byte {error.start})", hint="Save the file as UTF-8."
        ) from error
    except OSError as error:
        raise SpecError(
            f"{path}: {error.strerror}", hint="`maas init` writes a job file to start from."
        ) from error
    return parse_job(text, source=str(path))


def parse_job(text: str, *, source: str = "job.yaml") -> FineTuningJob:
    """The same for text already in memory; `source` names it in errors."""
    root = _compose(text, source)
    lines: dict[KeyPath, int] = {}
    problems: list[Problem] = []
    data = _plain(root, (), lines, problems)
    if not isinstance(data, dict):
        raise SpecError(f"{source}: a job file is a mapping of keys, not a {type(data).__name__}")
    job, found = _validated(data, lines)
    problems += (
        found + _file_problems(data, lines) + _knob_problems(data.get("hyperparameters"), lines)
    )
    if job is not None and not problems:
        return job
    ordered = tuple(sorted(problems, key=lambda problem: (problem.line or 0, problem.message)))
    count = "1 fault" if len(ordered) == 1 else f"{len(ordered)} faults"
    raise SpecError(f"{source}: {count}", problems=ordered)


def dump_job(job: FineTuningJob) -> str:
    """The job as YAML that azure-ai-ml's `load_job` and ours both accept."""
    return yaml.dump(job.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def nearest(word: str, known: Sequence[str]) -> str:
    """`did you mean X?`, or nothing where no known word is near."""
    match = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {match[0]}?" if match else ""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some YAML reader could take for a number or a truth value."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = text[:1].isalpha() and text.lower() not in _YAML_WORDS and "\n" not in text
    return dumper.represent_scalar(_TEXT, text, style=None if plain else '"')


_YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf"})
_Dumper.add_representer(str, _quoted)


def _compose(text: str, source: str) -> yaml.Node:
    try:
        _check_tokens(text, source)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem = Problem(
            error.problem or "not YAML",
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
            code="not_yaml",
        )
        raise SpecError(f"{source}: not YAML", problems=(problem,)) from error
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not YAML: {error}") from error
    if root is None:
        raise SpecError(
            f"{source}: the file is empty", hint="`maas init` writes one to start from."
        )
    return root


def _check_tokens(text: str, source: str) -> None:
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            # azure-ai-ml would expand them; nine lines of aliases can also fill any memory.
            raise SpecError(f"{source}: YAML aliases (*name) are not allowed in a job file")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _MAX_DEPTH:
            raise SpecError(f"{source}: nested too deeply for a job file")


_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
_MAX_DEPTH = 20


def _plain(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], problems: list[Problem]) -> Any:
    """The node as plain data; notes the line of every key, and every key given twice."""
    lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*at, i), lines, problems) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, problems)
    data: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        line = key_node.start_mark.line + 1
        if key_node.tag != _TEXT:
            hint = f'write "{key}" in quotes'
            problems.append(
                Problem(f"the key {key} must be text", line=line, hint=hint, code="not_text")
            )
        if key in data:
            problems.append(
                Problem(
                    f"{key} is given twice",
                    line=line,
                    hint=f"the first is on line {lines[(*at, key)]}; keep one",
                    code="duplicate_key",
                )
            )
        data[key] = _plain(value_node, (*at, key), lines, problems)
        lines[*at, key] = line
    return data


def _scalar(node: yaml.Node, problems: list[Problem]) -> Any:
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        problems.append(Problem(str(error), line=node.start_mark.line + 1, code="not_yaml"))
        return None
    finally:
        loader.dispose()
    # A bare date becomes a date object, and is refused as one: somebody forgot to quote it.
    known = isinstance(value, str | int | float | bool | dt.date | type(None))
    return value if known else str(node.value)


def _file_problems(data: dict[str, Any], lines: Mapping[KeyPath, int]) -> list[Problem]:
    """What azure-ai-ml refuses in a file, though there is only one thing it could mean."""
    problems = []
    if "type" not in data:
        problems.append(
            Problem("type is missing", line=1, hint="write type: finetuning", code="missing_key")
        )
    model = data.get("model")
    if isinstance(model, dict) and "path" in model and "type" not in model:
        line, hint = lines["model",], "write type: mlflow_model"
        problems.append(Problem("model.type is missing", line=line, hint=hint, code="missing_key"))
    for at in _nulls(data, ()):
        hint = "give it a value, or remove the line"
        message = f"{'.'.join(map(str, at))} has no value"
        problems.append(Problem(message, line=lines[at], hint=hint, code="no_value"))
    return problems


_MAY_BE_NULL: tuple[KeyPath, ...] = (
    ("tags",),
    ("properties",),
    ("hyperparameters",),
    ("outputs",),
)


def _nulls(data: Mapping[str, Any], at: KeyPath) -> Iterator[KeyPath]:
    for key, value in data.items():
        if not at and key in READ_ONLY_KEYS:
            continue
        if isinstance(value, dict):
            yield from _nulls(value, (*at, key))
        elif value is None and at not in _MAY_BE_NULL and (*at, key) not in _FOUND_NULL:
            yield (*at, key)


_FOUND_NULL: frozenset[KeyPath] = frozenset(
    (at, "path") for at in ("model", "training_data", "validation_data")
) | {(name,) for name, field in FineTuningJob.model_fields.items() if field.is_required()}
"""What pydantic refuses as null by itself."""


def _validated(
    data: dict[str, Any], lines: Mapping[KeyPath, int]
) -> tuple[FineTuningJob | None, list[Problem]]:
    try:
        return FineTuningJob.model_validate(data), []
    except ValidationError as error:
        return None, [_problem(entry, lines) for entry in error.errors(include_url=False)]


def _knob_problems(given: Any, lines: Mapping[KeyPath, int]) -> list[Problem]:
    if not isinstance(given, dict):
        return []
    problems = []
    for key, text in given.items():
        # What is not text is the schema's finding, already made.
        if isinstance(text, str) and (fault := hyperparameters.fault(key, text)):
            line = lines.get(("hyperparameters", key))
            problems.append(Problem(fault.message, line=line, hint=fault.hint, code=fault.code))
    return problems


def _problem(entry: Any, lines: Mapping[KeyPath, int]) -> Problem:
    """pydantic's finding in our words."""
    at: KeyPath = tuple(entry["loc"])
    line = next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), 1)
    message, hint, code = _words(at, entry)
    return Problem(f"{'.'.join(map(str, at))} {message}", line=line, hint=hint, code=code)


def _words(at: KeyPath, entry: Any) -> tuple[str, str, str]:
    """Message, hint and code."""
    value = entry.get("input")
    match entry["type"]:
        case "extra_forbidden":
            known = _known_keys(at[:-1])
            hint = nearest(str(at[-1]), known) or f"allowed here: {', '.join(known)}"
            return "is not a key of a job file", hint, "unknown_key"
        case "missing":
            return "is missing", _MISSING.get(str(at[0]), ""), "missing_key"
        case "literal_error" if str(value).replace("_", "").lower() == "azureopenai":
            hint = "this project fine-tunes the Phi family: model_provider: custom"
            return (
                f"{value} is another service (GPT models on Azure OpenAI)",
                hint,
                "model_provider",
            )
        case "literal_error":
            allowed = entry["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            hint = nearest(str(value), allowed.split(", ")) or f"allowed: {allowed}"
            return f"is {value!r}", hint, "not_allowed"
        case "string_type":
            quotable = not isinstance(value, dict | list)
            hint = f'write "{_as_text(value)}" in quotes' if quotable else ""
            shown = value if isinstance(value, dt.date) else repr(value)
            return f"is {shown}, and must be text", hint, "not_text"
        case "model_type" | "dict_type" | "model_attributes_type":
            return "must be a mapping of keys", "", "not_a_mapping"
        case "value_error":
            return f"is {value!r}: {entry['ctx']['error']}", "", "value_error"
        case kind:
            return f"is {value!r}: {entry['msg'].lower()}", "", kind


_MISSING = {
    "task": "for example task: chat_completion",
    "model_provider": "write model_provider: custom",
    "model": "for example model: {path: azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15,"
    " type: mlflow_model}",
    "training_data": "for example training_data: {path: train.jsonl, type: uri_file}",
}


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _known_keys(at: KeyPath) -> list[str]:
    model: type[BaseModel] = _PARTS[str(at[0])] if at else FineTuningJob
    keys = [field.alias or name for name, field in model.model_fields.items()]
    return keys if at else [*keys, *READ_ONLY_KEYS]


TASKS: tuple[str, ...] = get_args(FineTuningJob.model_fields["task"].annotation)
