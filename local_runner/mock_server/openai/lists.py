"""Lists as OpenAI's doors page them: newest first, `after` an id, filtered by metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from local_runner.mock_server.openai.access import invalid
from local_runner.mock_server.wire import Reply, whole_number

_FILTER = re.compile(r"metadata\[([^\]]*)\]")


def page(
    found: Sequence[Mapping[str, Any]], query: Mapping[str, str], *, default: int, most: int
) -> Reply:
    """What a list answers.

    Raises:
        ServiceError: the query asks for what no list has.
    """
    limit = default
    if "limit" in query:
        given = whole_number(query["limit"])
        if given is None or not 1 <= given <= most:
            raise invalid(f"limit must be a whole number from 1 to {most}.", param="limit")
        limit = given
    rows = list(found)
    if after := query.get("after"):
        place = next((n for n, row in enumerate(rows) if row["id"] == after), None)
        if place is None:
            raise invalid(f"after names nothing in this list: {after[:100]}", param="after")
        rows = rows[place + 1 :]
    shown = rows[:limit]
    return Reply(
        body={
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(rows) > limit,
        }
    )


def wanted_metadata(query: Mapping[str, str]) -> dict[str, str] | None:
    """What `metadata[key]=value` asks for; None for `metadata=null`: those without any.

    Raises:
        ServiceError: both forms stand side by side.
    """
    found = {match[1]: value for key, value in query.items() if (match := _FILTER.fullmatch(key))}
    if "metadata" not in query:
        return found
    if found or query["metadata"] != "null":
        raise invalid("metadata takes null, or metadata[key]=value.", param="metadata")
    return None


def has_metadata(held: Mapping[str, str] | None, wanted: Mapping[str, str] | None) -> bool:
    """Whether something bears the metadata that a list asks for."""
    if wanted is None:
        return not held
    return all((held or {}).get(key) == value for key, value in wanted.items())


def checked_metadata(given: Any) -> dict[str, str] | None:
    """The metadata of something new.

    Raises:
        ServiceError: it is more, or longer, than the service takes.
    """
    if given is None:
        return None
    if not isinstance(given, dict):
        raise invalid("metadata must be an object.", param="metadata", code="invalid_type")
    if len(given) > _MOST_PAIRS:
        raise invalid(
            f"metadata has {len(given)} pairs; at most {_MOST_PAIRS} are allowed.",
            param="metadata",
            code="object_above_max_properties",
        )
    for key, value in given.items():
        if not key or len(key) > _MOST_KEY:
            raise invalid(
                f"A key of metadata has 1 to {_MOST_KEY} characters, not {len(key)}.",
                param="metadata",
                code="string_above_max_length",
            )
        if not isinstance(value, str):
            raise invalid(
                f"metadata[{key}] must be a string.", param=f"metadata.{key}", code="invalid_type"
            )
        if len(value) > _MOST_VALUE:
            raise invalid(
                f"metadata[{key}] has {len(value)} characters; at most {_MOST_VALUE} are allowed.",
                param=f"metadata.{key}",
                code="string_above_max_length",
            )
    return given


_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512
