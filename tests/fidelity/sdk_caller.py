"""azure-ai-ml in a process of its own: one expression a line, and what its user would get.

Not in pytest's process: importing azure.ai.ml warns, takes seconds and remembers clouds. The first
line says where the mocks are; it imports nothing of ours.
"""

# mypy: ignore-errors
from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import time
import warnings
from functools import cache
from itertools import count
from typing import Any

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

from azure.ai.ml import Input, MLClient, Output  # noqa: E402
from azure.ai.ml.entities import Data, MarketplaceSubscription, ServerlessEndpoint  # noqa: E402
from azure.ai.ml.finetuning import FineTuningTaskType, create_finetuning_job  # noqa: E402
from azure.core.credentials import AccessToken  # noqa: E402

REGISTRY = "azureml://registries/azureml/models"
PHI = "Phi-3-mini-4k-instruct"
MODEL = f"{REGISTRY}/{PHI}/versions/15"
NUMBERS = count(1)
_ = (FineTuningTaskType, Input, Output, Data)  # for the expressions


class Fixed:
    """A credential with one token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *scopes: str, **words: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)


@cache
def ml(where: str = "here", **words: str) -> MLClient:
    """A client of a mock; its registry's with `registry`, another token or workspace where one is given."""
    mock = MOCKS[where]
    url = f"{mock['url']}/"
    cloud = {
        "azure_portal": "https://portal.azure.com", "resource_manager": url, "active_directory": url,
        "aml_resource_id": "https://ml.azure.com/", "storage_endpoint": "core.local",
        "registry_discovery_endpoint": url,
    }  # fmt: skip
    keywords = {"cloud": f"Mock{where}", "cloud_metadata": cloud}
    credential = Fixed(words.get("token", mock["token"]))
    if "registry" in words:
        return MLClient(credential, registry_name=words["registry"], **keywords)
    place = {key: words.get(key, mock[key]) for key in ("subscription", "group", "workspace")}
    return MLClient(credential, *place.values(), **keywords)


def asset(name: str) -> str:
    mock = MOCKS["here"]
    return f"{mock['place']}/data/{name}/versions/1"


def submit(where: str = "here", **changes: Any) -> Any:
    """A good job but for the changes."""
    good = {
        "task": FineTuningTaskType.CHAT_COMPLETION,
        "training_data": asset("good"),
        "validation_data": asset("good"),
        "hyperparameters": {"learning_rate": "0.00002"},
        "model": MODEL,
        "display_name": "x",
        "name": f"refused-{next(NUMBERS)}",
        "experiment_name": "x",
        "output_model_name_prefix": "tuned",
    }
    return ml(where).jobs.create_or_update(create_finetuning_job(**good | changes))


def knob(**values: str) -> Any:
    return submit(hyperparameters={"learning_rate": "0.00002"} | values)


def tuned(version: str, name: str = "tuned") -> str:
    mock = MOCKS["here"]
    return f"azureml://locations/eastus2/workspaces/{mock['id']}/models/{name}/versions/{version}"


def deploy(name: str, model: str, where: str = "here") -> Any:
    wish = ServerlessEndpoint(name=name, model_id=model)
    return ml(where).serverless_endpoints.begin_create_or_update(wish).result()


def subscribe(name: str, model: str) -> Any:
    wish = MarketplaceSubscription(model_id=model, name=name)
    return ml().marketplace_subscriptions.begin_create_or_update(wish).result()


def answer(expression: str) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            value = eval(expression)  # noqa: S307 - the test's own rows
            value = list(value) if hasattr(value, "by_page") else value
    except Exception as error:  # noqa: BLE001 - a refusal is what is asked for
        reply = getattr(error, "response", None)
        return {
            "raised": type(error).__name__,
            "words": str(error),
            "status": getattr(error, "status_code", None),
            "body": reply.text() if reply is not None else "",
            "headers": {key.lower(): value for key, value in reply.headers.items()}
            if reply
            else {},
        }
    return {"raised": None, "words": str(value)[:200]}


MOCKS = json.loads(sys.stdin.readline())
replies, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    replies.write(json.dumps(answer(json.loads(line))) + "\n")
    replies.flush()
