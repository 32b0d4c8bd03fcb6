"""What storage answers about the account and its containers."""

from __future__ import annotations

import base64
import heapq
import itertools
import time
from collections.abc import Iterator
from typing import Any

from local_runner.mock_server.storage import blob_words as words
from local_runner.mock_server.storage.blob_place import Place, is_about_account
from local_runner.mock_server.storage.blob_words import Entry
from local_runner.mock_server.storage.blobs import Blob
from local_runner.mock_server.storage.signatures import refusal
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, whole_number

_KIND = "container"
_MOST = 5000
_XML = "application/xml"
_ACCOUNT = {
    "x-ms-sku-name": "Standard_LRS",
    "x-ms-account-kind": "StorageV2",
    "x-ms-is-hns-enabled": "false",
}


class Containers:
    """The account's containers. The workspace's own two are always there."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def check(self, name: str) -> None:
        """Do nothing where there is such a container.

        Raises:
            ServiceError: 404, there is none.
        """
        if self._find(name) is None:
            raise refusal(404, "ContainerNotFound", "The specified container does not exist.")

    def answer(self, place: Place, call: Call) -> Reply:
        """Do what is asked of a container, or of the account."""
        asked = (call.method, call.query.get("comp", ""))
        if is_about_account(call):
            return Reply(200, headers=_ACCOUNT)
        if not place.container:
            return self._of_account(call)
        if asked == ("PUT", ""):
            return self._create(place.container, call)
        self.check(place.container)
        match asked:
            case ("GET", "list"):
                return self._list(place.container, call)
            case ("GET" | "HEAD", "" | "metadata"):
                return Reply(200, headers=self._headers(place.container))
            case ("PUT", "metadata"):
                self._write(place.container, words.metadata(call.headers))
                return Reply(200, headers=self._headers(place.container))
            case ("DELETE", ""):
                return self._delete(place.container)
            case _:
                raise not_served(call)

    def _of_account(self, call: Call) -> Reply:
        if call.query.get("comp") == "list" and call.method == "GET":
            return self._all(call)
        raise not_served(call)

    def _find(self, name: str) -> dict[str, Any] | None:
        body = self._twin.store.get(_KIND, name)
        site = self._twin.site
        if body is None and name in (site.blob_container, site.artifact_container):
            return {"modified": 0.0, "metadata": {}}
        return body

    def _write(self, name: str, metadata: dict[str, str]) -> None:
        self._twin.store.put(_KIND, name, {"modified": time.time(), "metadata": metadata})

    def _create(self, name: str, call: Call) -> Reply:
        metadata = words.metadata(call.headers)
        with self._twin.store.transaction():
            if self._find(name) is not None:
                raise refusal(
                    409, "ContainerAlreadyExists", "The specified container already exists."
                )
            self._write(name, metadata)
        return Reply(201, headers=self._headers(name))

    def _delete(self, name: str) -> Reply:
        self._twin.store.delete(_KIND, name)
        for blob in self._twin.blobs.list(name):
            self._twin.blobs.delete(blob)
        for waiting in self._twin.blobs.drafts.names(name):
            self._twin.blobs.drafts.drop(name, waiting)
        return Reply(202)

    def _headers(self, name: str) -> dict[str, str]:
        body = self._find(name) or {"modified": 0.0, "metadata": {}}
        headers = {
            "ETag": f'"0x{int(body["modified"] * 1e7):X}"',
            "Last-Modified": words.date(body["modified"]),
            "x-ms-lease-status": "unlocked",
            "x-ms-lease-state": "available",
            "x-ms-has-immutability-policy": "false",
            "x-ms-has-legal-hold": "false",
        }
        return headers | {f"x-ms-meta-{key}": value for key, value in body["metadata"].items()}

    def _all(self, call: Call) -> Reply:
        site = self._twin.site
        names = {doc.key for doc in self._twin.store.list(_KIND)}
        names |= {site.blob_container, site.artifact_container}
        first, limit = _start(call), _limit(call)
        prefix = call.query.get("prefix", "")
        found = sorted(name for name in names if name.startswith(prefix) and name >= first)
        rows = [(name, self._headers(name)) for name in found[:limit]]
        marker = _marker(found[limit]) if len(found) > limit else ""
        body = words.container_list(self._endpoint, call.query, rows, next_marker=marker)
        return Reply(200, body, media_type=_XML)

    @property
    def _endpoint(self) -> str:
        return f"https://{self._twin.site.account}.blob.core.local/"

    def _list(self, container: str, call: Call) -> Reply:
        limit = _limit(call)
        found = list(itertools.islice(self._entries(container, call), limit + 1))
        marker = _marker(found[limit][0]) if len(found) > limit else ""
        body = words.blob_list(
            self._endpoint, container, call.query, found[:limit], next_marker=marker
        )
        return Reply(200, body, media_type=_XML)

    def _entries(self, container: str, call: Call) -> Iterator[Entry]:
        query = call.query
        prefix, delimiter, start = query.get("prefix", ""), query.get("delimiter", ""), _start(call)
        found = self._twin.blobs.walk(container, prefix=prefix, delimiter=delimiter, start=start)
        if "uncommittedblobs" not in query.get("include", ""):
            return found
        # Few blobs wait for their list of blocks; the many are still read as they are asked for.
        waiting: dict[str, Blob | None] = {}
        for name in self._twin.blobs.drafts.names(container):
            if not name.startswith(prefix) or self._twin.blobs.get(container, name):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            shown = name[: cut + len(delimiter)] if cut >= 0 else name
            waiting[shown] = None if cut >= 0 else _unmade(container, name)
        extra = [entry for entry in sorted(waiting.items(), key=_name) if entry[0] >= start]
        return _merged(found, iter(extra))


def not_served(call: Call) -> Exception:
    """An operation of the service that the mock does not have. Not to be tried again."""
    comp = call.query.get("comp", "")
    return refusal(
        501,
        "NotImplemented",
        f"{call.method} comp={comp} is not served by the mock. `maas mock describe` says what is.",
    )


def _merged(first: Iterator[Entry], second: Iterator[Entry]) -> Iterator[Entry]:
    last = None
    for entry in heapq.merge(first, second, key=_name):
        if entry[0] != last:  # a common beginning may be in both
            yield entry
        last = entry[0]


def _name(entry: Entry) -> str:
    return entry[0]


def _unmade(container: str, name: str) -> Blob:
    return Blob(container, name, 0, "", time.time(), "", "")


def _limit(call: Call) -> int:
    given = call.query.get("maxresults")
    limit = whole_number(given)
    if given is not None and not limit:
        raise refusal(
            400,
            "OutOfRangeQueryParameterValue",
            f"maxresults: {given!r} is not a whole number from 1.",
        )
    return min(limit or _MOST, _MOST)


def _marker(name: str) -> str:
    """Where the next page begins. Opaque, as on the service."""
    return base64.urlsafe_b64encode(name.encode()).decode()


def _start(call: Call) -> str:
    given = call.query.get("marker", "")
    try:
        return base64.b64decode(given, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise refusal(
            400, "InvalidQueryParameterValue", "marker: it is none that a list gave."
        ) from error
