"""A workspace that answers from a table: what stands in for the worker of the Azure ML target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from maas_client.settings import AzureMLSettings
from maas_client.targets.azure_ml import AzureMLTarget
from maas_client.targets.azure_ml.child import Child

AZURE = AzureMLSettings("azure", "sub", "group", "space")
MOCK = replace(
    AZURE,
    name="mock",
    region="eastus2",
    resource_manager="https://127.0.0.1:8443",
    ca="/ca.pem",
    identity_endpoint="http://localhost:8081/msi/token",
    identity_header="the-secret-header",
)

RAW: dict[str, Any] = {
    "name": "job-1",
    "status": "Completed",
    "display_name": "a job",
    "model": "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15",
    "properties": {"mockSimulated": "true", "mockTrainedOn": "nothing"},
    "created_at": "2024-11-25T07:35:00.0545511+00:00",
    "output_name": "my-model",
    "output_version": None,
    "url": None,
    "error": None,
}

LINES = ["loading", "{'loss': 1.0, 'step': 1, 'max_steps': 2}", "saved"]
"""A job's log."""

Answer = Callable[..., Any]


class FakeChild(Child):
    """Answers from a table of verbs instead of a process."""

    def __init__(self, **answers: Any) -> None:
        super().__init__(MOCK)
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def ask(self, verb: str, **arguments: Any) -> Any:
        self.asked.append((verb, arguments))
        answer = self.answers[verb]
        if isinstance(answer, Exception):
            raise answer
        return answer(**arguments) if callable(answer) else answer


def target(**answers: Any) -> AzureMLTarget:
    return AzureMLTarget(MOCK, child=FakeChild(**answers))
