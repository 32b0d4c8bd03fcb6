"""Questions to a managed online endpoint: the key, the deployment that gets them, the answer."""

from __future__ import annotations

import re

from local_runner.mock_server.credentials import same
from local_runner.mock_server.doors import served
from local_runner.mock_server.doors.questions import scored, spoken
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import Call, Reply, Route

_DEPLOYMENT = "azureml-model-deployment"
"""The header that chooses a deployment; the answer says in it which one answered."""
_SCORE = {
    "type": "object",
    "required": ["input_data"],
    "properties": {"input_data": {}, "params": {"type": "object"}},
}


def routes(twin: Twin) -> list[Route]:
    """The routes of this door; it looks at the key itself."""
    door, call = _Door(twin), "online_endpoints.invoke"
    return [
        Route("POST", "/online/{name}/score", door.score, "open", slow=True, call=call, body=_SCORE)
    ]


class _Door:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def score(self, call: Call) -> Reply:
        endpoint = self._endpoint(call)
        deployment = self._deployment(endpoint, call.headers.get(_DEPLOYMENT, ""))
        try:
            questions, several = scored(call.json())
            weights, speaker = served.adapter(self._twin, deployment), self._twin.speaker
            said = speaker.answers(deployment["base_model"], weights, questions, call.gone)
            texts = [text for text, _ in spoken(said)]
        except ServiceError as error:
            raise _of_the_model(error) from error
        headers = {_DEPLOYMENT: deployment["name"]}
        return Reply(body={"output": texts if several else texts[0]}, headers=headers)

    def _endpoint(self, call: Call) -> Body:
        endpoint = self._twin.store.get("online", call.params["name"].lower())
        given = call.headers.get("authorization", "")
        key = re.sub(r"(?i)^bearer ", "", given).strip()
        # The same answer for an unknown endpoint and a wrong key: names are not given away.
        if endpoint is not None and endpoint["mode"] != "Key":
            good = bool(key) and not self._twin.secrets.token_fault(key)
        else:
            known = endpoint["keys"] if endpoint else ["", ""]
            good = any([same(key, known[0]), same(key, known[1])]) and bool(key)
        if endpoint is None or not good:
            raise ServiceError(
                401,
                "UnauthorizedAccess",
                "Invalid or missing key or token for this endpoint.",
                inner="401",
            )
        return endpoint

    def _deployment(self, endpoint: Body, wanted: str) -> Body:
        """The one that the caller names, or one by the shares of the traffic."""
        name = wanted or self._drawn(endpoint["traffic"])
        found = self._twin.store.get("deployment", f"{endpoint['name']}/{name}".lower())
        if found is None:
            raise ServiceError(
                404,
                "NotFound",
                f"Endpoint {endpoint['name']} has no deployment {name}."
                if name
                else f"Endpoint {endpoint['name']} has no valid deployment with positive weight.",
                inner="DeploymentNotFound",
            )
        return found

    def _drawn(self, traffic: dict[str, int]) -> str:
        if len(traffic) < 2:
            return next(iter(traffic), "")
        place = self._twin.dice.chance() * sum(traffic.values())
        for name, share in traffic.items():
            place -= share
            if place < 0:
                return name
        return next(reversed(traffic))


def _of_the_model(error: ServiceError) -> ServiceError:
    """What the service makes of a model's own refusal: 424, and the model's status in a header."""
    if error.status >= 500:
        return error
    headers = {
        "ms-azureml-model-error-statuscode": str(error.status),
        "ms-azureml-model-error-reason": "model_error",
    }
    return ServiceError(424, "ModelError", error.message, inner=error.inner, headers=headers)
