"""What the fidelity tests share."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import httpx
import pytest

from local_runner.mock_server.storage.blob_routes import ACCOUNT_PATH, Operation
from tests.mocking import running_mock
from tests.wire import line_to


@pytest.fixture(scope="module")
def blob_line(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Operation], httpx.Response]]:
    """Sends a blob operation to a mock, as plainly as it can be sent."""
    with (
        running_mock(tmp_path_factory.mktemp("mock"), "--engine", "simulate") as mock,
        line_to(mock) as client,
    ):
        block = base64.b64encode(b"one").decode()

        def send(operation: Operation) -> httpx.Response:
            client.put(f"{ACCOUNT_PATH}/box?restype=container")
            client.put(f"{ACCOUNT_PATH}/box/it", content=b"x")
            client.put(f"{ACCOUNT_PATH}/box/it?comp=block&blockid={block}", content=b"x")
            path = operation.pattern.format(
                container="new" if operation.call == "create_container" else "box", name="it"
            )
            query = operation.query.replace("comp=block", f"blockid={block}&comp=block")
            body = {
                "comp=blocklist": f"<BlockList><Latest>{block}</Latest></BlockList>",
                "comp=block": "x",
            }.get(operation.query, "")
            headers = {"x-ms-access-tier": "Cool"} if operation.query == "comp=tier" else {}
            return client.request(
                operation.method,
                f"{ACCOUNT_PATH}{path}?{query}",
                content=body if operation.method == "PUT" else None,
                headers=headers,
            )

        yield send
