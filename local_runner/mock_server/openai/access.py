"""Where the OpenAI doors are, and who may come in: the resource's key, or a token of the twin's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from local_runner.mock_server.credentials import Secrets, same
from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.wire import Call, Handler, Reply, Route

PREFIX = re.compile(r"/(v1|openai|models|api/projects)(/|$)", re.IGNORECASE)
"""Paths whose refusals are in OpenAI's words."""
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Base:
    """One way to the doors."""

    path: str
    azure: bool = True
    """Whether a model needs a deployment before it answers, and absent values are sent as null."""
    versioned: bool = False
    """Whether a call must say its api-version."""


BASES = (Base("/v1", azure=False), Base("/openai/v1"), Base("/openai", versioned=True))


def is_azure(call: Call) -> bool:
    """Whether the call came through one of Azure's ways."""
    return not call.path.lower().startswith("/v1/")


def everywhere(
    method: str,
    path: str,
    handler: Handler,
    *,
    call: str,
    body: Mapping[str, Any] | None = None,
    upload: int = 0,
) -> list[Route]:
    """The route under every base."""
    return [
        Route(
            method,
            base.path + path,
            versioned(handler) if base.versioned else handler,
            "api-key",
            source="documented" if base.versioned else "sdk",
            call=f"AzureOpenAI: {call}" if base.versioned else f"openai: {call}",
            body=body,
            upload=upload,
        )
        for base in BASES
    ]


def versioned(handler: Handler) -> Handler:
    """The door, for those who say their api-version."""

    @wraps(handler)
    def checked(call: Call) -> Reply:
        if not call.query.get("api-version"):
            raise ServiceError(404, "404", "Resource not found", inner="404")
        return handler(call)

    return checked


def admit(secrets: Secrets, call: Call) -> None:
    """Let the caller in.

    Raises:
        ServiceError: neither a key nor a token is good.
    """
    bearer = re.sub(r"(?i)^bearer ", "", call.headers.get("authorization", "")).strip()
    key = call.headers.get("api-key", "").strip()
    # Every key that came is compared, so that how long it takes says nothing.
    good = [same(given, secrets.api_key) for given in (key, bearer) if given]
    if any(good):
        return
    if bearer:
        fault = secrets.token_fault(bearer)
        if not fault:
            return
        if fault.endswith("expired."):
            raise _unauthorized(fault)
    raise _unauthorized(
        "Access denied due to an invalid key or token, or a wrong API endpoint."
        if good
        else "No key was given. Send it as `Authorization: Bearer` or as `api-key`."
    )


def invalid(
    message: str, *, param: str | None, code: str = "invalid_value", status: int = 400
) -> ServiceError:
    """What OpenAI's service says to a request that is wrong."""
    return ServiceError(status, code, message, inner=code, param=param)


def no_such(what: str, name: str, *, param: str, code: str | None = None) -> ServiceError:
    """What it says to a name that names nothing."""
    inner = code or "not_found"
    return invalid(f"No such {what}: {name[:MAX_NAME]}", param=param, code=inner, status=404)


def text(given: Mapping[str, Any], key: str, *, most: int = MAX_NAME) -> str:
    """A text that has to be there.

    Raises:
        ServiceError: it is not.
    """
    value = given.get(key)
    if value is None or value == "":
        raise invalid(
            f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter"
        )
    if not isinstance(value, str):
        raise invalid(
            f"Invalid type for '{key}': expected a string.", param=key, code="invalid_type"
        )
    if len(value) > most:
        raise invalid(
            f"'{key}' has at most {most} characters.", param=key, code="string_above_max_length"
        )
    return value


def _unauthorized(message: str) -> ServiceError:
    return ServiceError(401, "invalid_api_key", message)
