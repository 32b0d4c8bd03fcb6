"""Uploads: a large file in parts, put together at the end."""

from __future__ import annotations

import hashlib
from typing import Any

from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.openai import files
from local_runner.mock_server.openai.access import everywhere, invalid, no_such, text
from local_runner.mock_server.openai.files_door import expires_after
from local_runner.mock_server.storage.blobs import Label
from local_runner.mock_server.storage.upload import Upload
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route, part

KIND, PARTS = "openai-upload", "openai-part"
MAX_UPLOAD = 8 * 1024**3
MAX_PART = 64 * 1024**2
_SECONDS = 3600
"""How long an upload waits for its parts."""
_PIECE = 1024 * 1024
_NEW = {
    "type": "object",
    "required": ["bytes", "filename", "mime_type", "purpose"],
    "properties": {
        "bytes": {"type": "integer", "minimum": 1, "maximum": MAX_UPLOAD},
        "filename": {"type": "string"},
        "mime_type": {"type": "string"},
        "purpose": {"type": "string", "enum": [files.TUNE]},
    },
}
_PART = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "format": "binary"}},
}
_DONE = {
    "type": "object",
    "required": ["part_ids"],
    "properties": {
        "part_ids": {"type": "array", "items": {"type": "string"}},
        "md5": {"type": "string"},
    },
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door."""
    door, one, verbs = _Door(twin), "/uploads/{upload}", "uploads"
    return [
        *everywhere("POST", "/uploads", door.create, call=f"{verbs}.create", body=_NEW),
        *everywhere(
            "POST",
            f"{one}/parts",
            door.add,
            call=f"{verbs}.parts.create",
            body=_PART,
            upload=MAX_PART,
        ),
        *everywhere("POST", f"{one}/complete", door.complete, call=f"{verbs}.complete", body=_DONE),
        *everywhere("POST", f"{one}/cancel", door.cancel, call=f"{verbs}.cancel"),
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def create(self, call: Call) -> Reply:
        given = call.json()
        size = given.get("bytes")
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_UPLOAD:
            raise invalid(f"bytes must be a whole number from 1 to {MAX_UPLOAD:,}.", param="bytes")
        now = int(self._twin.clock.time())
        upload: Body = {
            "id": f"upload_{self._twin.dice.uuid().replace('-', '')}",
            "bytes": size,
            "created_at": now,
            "expires_at": now + _SECONDS,
            "filename": text(given, "filename"),
            "mime_type": text(given, "mime_type"),
            "purpose": files.check_purpose(given.get("purpose")),
            "expires": expires_after(part(given, "expires_after")),
            "status": "pending",
            "file": None,
        }
        self._twin.store.put(KIND, upload["id"], upload)
        return Reply(body=self._shown(upload))

    def add(self, call: Call) -> Reply:
        upload, form = self._pending(call), call.form
        assert form is not None  # noqa: S101 - the route takes one
        if form.file is None or form.file_field != "data" or not form.file.size:
            raise invalid(
                "Missing required parameter: 'data'.",
                param="data",
                code="missing_required_parameter",
            )
        number = f"part_{self._twin.dice.uuid().replace('-', '')}"
        name = f"openai/{upload['id']}/{number}"
        # A blob without a name in any list of files: it goes when the upload is over.
        blob = self._twin.blobs.commit(self._twin.site.blob_container, name, form.file, Label())
        made = {
            "id": number,
            "created_at": int(self._twin.clock.time()),
            "object": "upload.part",
            "upload_id": upload["id"],
        }
        self._twin.store.put(PARTS, f"{upload['id']}/{number}", made | {"bytes": blob.size})
        return Reply(body=made)

    def complete(self, call: Call) -> Reply:
        upload, given = self._pending(call), call.json()
        wanted = given.get("part_ids")
        if not isinstance(wanted, list) or not wanted:
            raise invalid("part_ids must list the parts in order.", param="part_ids")
        known = {doc.body["id"]: doc.body for doc in self._parts(upload)}
        for number in wanted:
            if number not in known:
                raise invalid(f"No such part: {str(number)[:100]}", param="part_ids")
        total = sum(known[number]["bytes"] for number in wanted)
        if total != upload["bytes"]:
            raise invalid(
                f"The parts have {total:,} bytes; the upload was announced with {upload['bytes']:,}.",
                param="part_ids",
                code="upload_size_mismatch",
            )
        whole = self._twin.blobs.begin()
        try:
            digest = self._join(upload, wanted, whole)
            if given.get("md5") not in (None, "", digest):
                raise invalid(
                    f"The parts' md5 is {digest}, not {str(given['md5'])[:50]}.",
                    param="md5",
                    code="md5_mismatch",
                )
            file = files.keep(self._twin, whole, upload["filename"], expires=upload["expires"])
        finally:
            whole.abandon()  # harmless where it was kept
        try:
            with self._twin.store.transaction():
                self._pending(call)  # else somebody else was quicker
                changed = {"status": "completed", "file": file["id"]}
                upload = self._twin.store.change(KIND, upload["id"], **changed)
        except ServiceError:
            files.forget(self._twin, file)
            raise
        self._drop_parts(upload)
        return Reply(body=self._shown(upload))

    def cancel(self, call: Call) -> Reply:
        upload = self._pending(call)
        self._drop_parts(upload)
        upload = self._twin.store.change(KIND, upload["id"], status="cancelled")
        return Reply(body=self._shown(upload))

    def _join(self, upload: Body, wanted: list[str], whole: Upload) -> str:
        """Write the parts one after another; returns the MD5 in hex."""
        digest = hashlib.md5(usedforsecurity=False)  # the protocol's own
        for number in wanted:
            name = f"openai/{upload['id']}/{number}"
            opened = self._twin.blobs.open(self._twin.site.blob_container, name)
            if opened is None:
                raise invalid(f"No such part: {number}", param="part_ids")
            with opened[1] as stream:
                while piece := stream.read(_PIECE):
                    digest.update(piece)
                    whole.write([piece])
        return digest.hexdigest()

    def _pending(self, call: Call) -> Body:
        """The upload, if it still takes something."""
        number = call.params["upload"]
        upload = self._twin.store.get(KIND, number)
        if upload is None:
            raise no_such("Upload", number, param="upload_id")
        late = upload["expires_at"] <= self._twin.clock.time()
        if upload["status"] == "pending" and late:
            self._drop_parts(upload)
            upload = self._twin.store.change(KIND, number, status="expired")
        if upload["status"] != "pending":
            raise invalid(
                f"Upload {number} is {upload['status']}.",
                param="upload_id",
                code=f"upload_{upload['status']}",
            )
        return upload

    def _parts(self, upload: Body) -> list[Any]:
        return self._twin.store.list(PARTS, prefix=f"{upload['id']}/")

    def _drop_parts(self, upload: Body) -> None:
        for doc in self._parts(upload):
            self._twin.store.delete(PARTS, doc.key)
        container = self._twin.site.blob_container
        for blob in self._twin.blobs.list(container, f"openai/{upload['id']}/"):
            self._twin.blobs.delete(blob)

    def _shown(self, upload: Body) -> dict[str, Any]:
        made = {key: value for key, value in upload.items() if key != "expires"}
        file = self._twin.store.get(files.KIND, upload["file"]) if upload["file"] else None
        return made | {"object": "upload", "file": files.shown(file) if file else None}
