"""The structure of a Workspace: what a CRD's schema says of an object, checked before it is sent. Pure.

OpenAPI v3 as Kubernetes restricts it: types, required, enum, bounds, patterns, items. A cluster's own CRD
is checked against where it can be read; `WORKSPACE` has the parts that are written here, for the rest.
Source of those: the CustomResourceDefinition workspaces.kaito.sh of Kaito v0.12, v1beta1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

GROUP, VERSION, PLURAL, KIND = "kaito.sh", "v1beta1", "workspaces", "Workspace"
API_VERSION = f"{GROUP}/{VERSION}"
CRD = f"{PLURAL}.{GROUP}"

_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_ANY: Schema = {"x-kubernetes-preserve-unknown-fields": True}


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


_SELECTOR: Schema = _object(
    matchLabels={"type": "object", "additionalProperties": _TEXT},
    matchExpressions={
        "type": "array",
        "items": _object("key", "operator", key=_TEXT, operator=_TEXT, values=_TEXTS),
    },
)
_INPUT: Schema = _object(
    name=_TEXT, urls=_TEXTS, image=_TEXT, imagePullSecrets=_TEXTS, volumeSource=_ANY
)
_OUTPUT: Schema = _object(image=_TEXT, imagePushSecret=_TEXT, volumeSource=_ANY)
_PRESET: Schema = _object(
    "name",
    name=_TEXT,
    accessMode={"type": "string", "enum": ["public", "private"]},
    presetOptions=_object(image=_TEXT, imagePullSecrets=_TEXTS, modelAccessSecret=_TEXT),
)
WORKSPACE: Schema = _object(
    apiVersion=_TEXT,
    kind=_TEXT,
    metadata={"type": "object"},
    resource=_object(
        "labelSelector",
        count={"type": "integer"},
        instanceType=_TEXT,
        labelSelector=_SELECTOR,
        preferredNodes=_TEXTS,
        partition={"type": "object", **_ANY},
    ),
    inference={"type": "object", **_ANY},
    tuning=_object(
        "input", "output", config=_TEXT, input=_INPUT, method=_TEXT, output=_OUTPUT, preset=_PRESET
    ),
    status={"type": "object", **_ANY},
)

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def of_crd(crd: Mapping[str, Any]) -> Schema | None:
    """The schema of the version that we write, as a cluster's CRD has it."""
    for version in crd.get("spec", {}).get("versions", ()):
        if version.get("name") == VERSION and version.get("served", True):
            found: Schema | None = version.get("schema", {}).get("openAPIV3Schema")
            return found
    return None


def faults(value: Any, schema: Schema = WORKSPACE, *, at: str = "") -> Iterator[str]:
    """What is wrong with an object's structure, each with its path.

    Unknown keys are wrong: a server drops them without a word.

    Args:
        value: the object, as JSON has it.
        schema: an openAPIV3Schema.
        at: where the value stands.
    """
    kind = str(schema.get("type", ""))
    if value is None and schema.get("nullable"):
        return
    if kind in _TYPES and not _is(value, kind):
        yield f"{at or 'the object'} is {value!r}; it must be of type {kind}"
        return
    yield from _value_faults(value, schema, at)
    if isinstance(value, dict):
        yield from _object_faults(value, schema, at)
    if isinstance(value, list) and "items" in schema:
        for place, item in enumerate(value):
            yield from faults(item, schema["items"], at=f"{at}[{place}]")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])


def _value_faults(value: Any, schema: Schema, at: str) -> Iterator[str]:
    for rule in (schema, *schema.get("allOf", ())):
        if "enum" in rule and value not in rule["enum"]:
            yield f"{at} is {value!r}; allowed: {', '.join(map(str, rule['enum']))}"
            return
    if isinstance(value, str):
        if (longest := schema.get("maxLength")) is not None and len(value) > longest:
            yield f"{at} has {len(value)} characters; at most {longest}"
        if (pattern := schema.get("pattern")) and not re.search(pattern, value):
            yield f"{at} is {value!r}; it must match {pattern}"
    if (
        isinstance(value, int | float)
        and (low := schema.get("minimum")) is not None
        and value < low
    ):
        yield f"{at} is {value}; at least {low}"


def _object_faults(value: Mapping[str, Any], schema: Schema, at: str) -> Iterator[str]:
    known = schema.get("properties", {})
    dot = f"{at}." if at else ""
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{dot}{name} is missing"
    others = schema.get("additionalProperties")
    is_open = bool(others) or schema.get("x-kubernetes-preserve-unknown-fields") or not known
    for name, inner in value.items():
        if name in known:
            yield from faults(inner, known[name], at=f"{dot}{name}")
        elif isinstance(others, Mapping):
            yield from faults(inner, others, at=f"{dot}{name}")
        elif not is_open:
            near = difflib.get_close_matches(name, known, n=1)
            yield f"{dot}{name} is unknown" + (f"; did you mean {near[0]}?" if near else "")
