"""Lists of this wire, page after page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maas_client.errors import TargetError
from maas_client.transport import Transport

_PAGE = 100


def pages(
    line: Transport, path: str, params: Mapping[str, Any] | None = None, *, page: int = _PAGE
) -> Iterator[dict[str, Any]]:
    """Every entry of a list; a page is asked for when it is needed.

    Raises:
        TargetError: the service does not get on.
    """
    query: dict[str, Any] = {**(params or {}), "limit": page}
    while True:
        raw = line.get(path, query)
        entries = raw.get("data") or []
        yield from entries
        if not raw.get("has_more") or not entries:
            return
        last = entries[-1]["id"]
        if query.get("after") == last:
            raise TargetError(f"{path}: the service says the same page again and again")
        query["after"] = last
