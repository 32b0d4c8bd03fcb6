"""Files: upload, list, read, delete; as the SDK's `files` sends and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from local_runner.mock_server.openai import files
from local_runner.mock_server.openai.access import everywhere, invalid
from local_runner.mock_server.openai.lists import page
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route, whole_number

_EXPIRES = (3600, 2_592_000)
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": [files.TUNE]},
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door, one = _Door(twin), "/files/{file}"
    return [
        *everywhere(
            "POST", "/files", door.create, call="files.create", body=_FORM, upload=files.MAX_FILE
        ),
        *everywhere("GET", "/files", door.list, call="files.list"),
        *everywhere("GET", one, door.get, call="files.retrieve"),
        *everywhere("GET", f"{one}/content", door.content, call="files.content"),
        *everywhere("DELETE", one, door.delete, call="files.delete"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def create(self, call: Call) -> Reply:
        form = call.form
        assert form is not None  # noqa: S101 - the route takes one
        purpose = files.check_purpose(form.fields.get("purpose"))
        if form.file is None or form.file_field != "file":
            raise invalid(
                "Missing required parameter: 'file'.",
                param="file",
                code="missing_required_parameter",
            )
        if form.file.size == 0:
            raise invalid("The file is empty.", param="file", code="empty_file")
        expires = expires_after(
            {
                key: form.fields.get(f"expires_after[{key}]")
                for key in ("anchor", "seconds")
                if f"expires_after[{key}]" in form.fields
            }
        )
        made = files.keep(
            self._twin, form.file, form.filename or "upload", purpose=purpose, expires=expires
        )
        return Reply(body=files.shown(made))

    def list(self, call: Call) -> Reply:
        order, purpose = call.query.get("order", "desc"), call.query.get("purpose")
        if order not in ("asc", "desc"):
            raise invalid("order must be asc or desc.", param="order")
        found = [
            files.shown(doc.body)
            for doc in self._twin.store.list(files.KIND)
            if purpose in (None, doc.body["purpose"]) and not files.is_over(self._twin, doc.body)
        ]
        rows = found[::-1] if order == "asc" else found
        return page(rows, call.query, default=10_000, most=10_000)

    def get(self, call: Call) -> Reply:
        return Reply(body=files.shown(files.find(self._twin, call.params["file"])))

    def content(self, call: Call) -> Reply:
        file = files.find(self._twin, call.params["file"])
        stream = files.content(self._twin, file)
        return Reply(body=stream, media_type="application/octet-stream")

    def delete(self, call: Call) -> Reply:
        file = files.find(self._twin, call.params["file"])
        files.forget(self._twin, file)
        return Reply(body={"id": file["id"], "object": "file", "deleted": True})


def expires_after(given: Mapping[str, Any] | None) -> int | None:
    """After how many seconds a new file goes; None for never.

    Raises:
        ServiceError: it makes no sense.
    """
    if not given:
        return None
    seconds = whole_number(str(given.get("seconds")))
    if given.get("anchor") != "created_at":
        raise invalid("expires_after.anchor must be created_at.", param="expires_after.anchor")
    if seconds is None or not _EXPIRES[0] <= seconds <= _EXPIRES[1]:
        raise invalid(
            f"expires_after.seconds must be from {_EXPIRES[0]} to {_EXPIRES[1]}.",
            param="expires_after.seconds",
        )
    return seconds
