"""Where in a line of JSON a value stands, so that a report can point at it."""

from __future__ import annotations

import json
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"

JsonPath = tuple[str | int, ...]


def column_of(text: str, path: JsonPath) -> int:
    """Column, from 1, of the value at `path` in valid JSON; of the nearest parent where it is absent.

    A path such as `("messages", 2, "role")` walks objects by key and arrays by index.
    """
    at = _skip(text, 0)
    for part in path:
        found = _key(text, at, part) if text[at] == "{" else _item(text, at, part)
        if found is None:
            break
        at = found
    return at + 1


def key_column(text: str, path: JsonPath) -> int:
    """Column, from 1, of the key that `path` ends with, rather than of its value."""
    at = column_of(text, path[:-1]) - 1
    if text[at] != "{":
        return at + 1
    for key, start, _ in _members(text, at):
        if key == path[-1]:
            return start + 1
    return at + 1


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _members(text: str, at: int) -> list[tuple[str, int, int]]:
    """Key, where the key starts and where its value starts, for each member of the object at `at`."""
    members = []
    at = _skip(text, at + 1)
    while text[at] == '"':
        start = at
        key, at = _value(text, at)
        at = _skip(text, _skip(text, at) + 1)
        members.append((key, start, at))
        _, at = _value(text, at)
        at = _skip(text, at)
        if text[at] != ",":
            break
        at = _skip(text, at + 1)
    return members


def _key(text: str, at: int, key: str | int) -> int | None:
    found = None
    for name, _, value_at in _members(text, at):
        if name == key:
            found = value_at
    return found


def _item(text: str, at: int, index: str | int) -> int | None:
    if text[at] != "[" or not isinstance(index, int):
        return None
    at = _skip(text, at + 1)
    for _ in range(index):
        if text[at] == "]":
            return None
        _, at = _value(text, at)
        at = _skip(text, _skip(text, at) + 1)
    return at if text[at] != "]" else None


def _value(text: str, at: int) -> tuple[Any, int]:
    return _DECODER.raw_decode(text, at)
