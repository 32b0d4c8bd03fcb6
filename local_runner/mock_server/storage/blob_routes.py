"""What the blob door answers, as a table for readers: it goes by query and headers, not by routes."""

from __future__ import annotations

from dataclasses import dataclass

from local_runner.mock_server.credentials import ACCOUNT
from local_runner.mock_server.wire import Source

ACCOUNT_PATH = f"/{ACCOUNT}.blob.core.local"
_CONTAINER = "/{container}"
_BLOB = "/{container}/{name}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the storage protocol."""

    method: str
    pattern: str
    """Under the account's path, or under its public host."""
    query: str = ""
    call: str = ""
    """The verb of azure-storage-blob that sends it."""
    source: Source = "documented"


OPERATIONS = (
    Operation("GET", "/", "comp=list", "list_containers"),
    Operation("GET", "/", "restype=account&comp=properties", "get_account_information"),
    Operation("PUT", _CONTAINER, "restype=container", "create_container"),
    Operation("GET", _CONTAINER, "restype=container", "get_container_properties"),
    Operation("HEAD", _CONTAINER, "restype=container", "exists"),
    Operation("DELETE", _CONTAINER, "restype=container", "delete_container"),
    Operation("GET", _CONTAINER, "restype=container&comp=list", "list_blobs, walk_blobs", "sdk"),
    Operation("PUT", _BLOB, "", "upload_blob", "sdk"),
    Operation("PUT", _BLOB, "comp=block", "stage_block", "sdk"),
    Operation("PUT", _BLOB, "comp=blocklist", "commit_block_list", "sdk"),
    Operation("GET", _BLOB, "comp=blocklist", "get_block_list"),
    Operation("PUT", _BLOB, "comp=metadata", "set_blob_metadata", "sdk"),
    Operation("PUT", _BLOB, "comp=properties", "set_http_headers"),
    Operation("PUT", _BLOB, "comp=tier", "set_standard_blob_tier"),
    Operation("GET", _BLOB, "", "download_blob", "sdk"),
    Operation("HEAD", _BLOB, "", "get_blob_properties", "sdk"),
    Operation("DELETE", _BLOB, "", "delete_blob", "sdk"),
)
