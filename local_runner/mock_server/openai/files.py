"""Files of the OpenAI doors: kept in the workspace's storage, checked with the client's own validator."""

from __future__ import annotations

from io import BufferedReader
from typing import Any

from local_runner.mock_server.openai.access import invalid, no_such
from local_runner.mock_server.storage.blobs import Label
from local_runner.mock_server.storage.upload import Upload
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import BLOB_STORE, Twin
from maas_client.spec import dataset

KIND = "openai-file"
MAX_FILE = dataset.MAX_BYTES
TUNE, RESULTS = "fine-tune", "fine-tune-results"
_SHOWN_PROBLEMS = 5


def keep(
    twin: Twin, upload: Upload, filename: str, *, purpose: str = TUNE, expires: int | None = None
) -> Body:
    """Make a file of what was uploaded, and look at its rows."""
    number = f"file-{twin.dice.uuid().replace('-', '')}"
    blob = twin.blobs.commit(twin.site.blob_container, _blob(number), upload, Label())
    now = int(twin.clock.time())
    file: Body = {
        "id": number,
        "bytes": blob.size,
        "created_at": now,
        "filename": filename,
        "purpose": purpose,
        "expires_at": now + expires if expires else None,
        "status": "processed",
        "status_details": None,
        "rows": 0,
    }
    if purpose == TUNE:
        most = twin.controls.settings.file_bytes
        report = dataset.check(twin.blobs.path(blob), "chat_completion", max_bytes=most)
        file["rows"] = report.rows
        if not report.ok:
            words = "; ".join(str(problem) for problem in report.problems[:_SHOWN_PROBLEMS])
            more = len(report.problems) - _SHOWN_PROBLEMS
            file["status"] = "error"
            file["status_details"] = words + (f"; and {more} more" if more > 0 else "")
    twin.store.put(KIND, number, file)
    return file


def find(twin: Twin, number: str, *, param: str = "id") -> Body:
    """The file of that id.

    Raises:
        ServiceError: there is none, or none any more.
    """
    file = twin.store.get(KIND, number)
    if file is None or is_over(twin, file):
        raise no_such("File object", number, param=param)
    return file


def is_over(twin: Twin, file: Body) -> bool:
    """Whether its time has come."""
    return file["expires_at"] is not None and file["expires_at"] <= twin.clock.time()


def content(twin: Twin, file: Body) -> BufferedReader:
    """What is in it.

    Raises:
        ServiceError: somebody deleted it at another door.
    """
    opened = twin.blobs.open(twin.site.blob_container, _blob(file["id"]))
    if opened is None:
        raise no_such("File object", file["id"], param="id")
    return opened[1]


def forget(twin: Twin, file: Body) -> None:
    """Delete it; a job that has taken it keeps its own rows."""
    twin.store.delete(KIND, file["id"])
    if blob := twin.blobs.get(twin.site.blob_container, _blob(file["id"])):
        twin.blobs.delete(blob)


def uri(number: str) -> str:
    """Where Azure ML finds the rows."""
    return f"azureml://datastores/{BLOB_STORE}/paths/{_blob(number)}"


def shown(file: Body) -> dict[str, Any]:
    """As clients see it."""
    return {
        "id": file["id"],
        "object": "file",
        "bytes": file["bytes"],
        "created_at": file["created_at"],
        "filename": file["filename"],
        "purpose": file["purpose"],
        "status": file["status"],
        "status_details": file["status_details"],
        "expires_at": file["expires_at"],
    }


def check_purpose(given: Any) -> str:
    """The one purpose that is served.

    Raises:
        ServiceError: it is another one.
    """
    if given in (None, ""):
        raise invalid(
            "Missing required parameter: 'purpose'.",
            param="purpose",
            code="missing_required_parameter",
        )
    if given != TUNE:
        raise invalid(
            f"Invalid value for 'purpose': {str(given)[:50]!r}. Here files are for 'fine-tune'.",
            param="purpose",
        )
    return TUNE


def _blob(number: str) -> str:
    return f"openai/{number}.jsonl"
