"""One row's faults: what is wrong, where in the row, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from maas_client.spec.json_place import JsonPath


class Fault(Exception):  # noqa: N818 - a finding that is raised only inside the JSON decoder
    """One fault of one row, by its place in the row.

    Args:
        code: a stable word for programs.
        message: what is wrong, with the key and the value.
        fix: what to write instead.
        at: keys and indexes that lead to the value.
        key: whether the key is at fault, rather than its value.
    """

    def __init__(
        self, code: str, message: str, fix: str, at: JsonPath = (), *, key: bool = False
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.fix, self.at, self.key = code, message, fix, at, key


_HALF = re.compile("[\ud800-\udfff]")
RowCheck = Callable[[Any], Iterator[Fault]]


def text_faults(value: Any, at: JsonPath, name: str) -> Iterator[Fault]:
    """Why a value is no text that can be trained on."""
    if not isinstance(value, str):
        yield Fault("not_text", f"{name} is {kind(value)}, not text", "write a string", at)
    elif not value.strip():
        yield Fault("empty_content", f"{name} is empty", "write the text, or delete the row", at)
    elif _HALF.search(value):
        yield Fault(
            "encoding",
            f"{name} holds half a character (a lone surrogate)",
            "write the whole character",
            at,
        )


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
