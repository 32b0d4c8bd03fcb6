"""Every refusal of the service, in the forms that its doors speak. Made in one place."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any
from xml.sax.saxutils import escape

REPLACED = "The mock's whole state was replaced meanwhile. Send it again."


class ServiceError(Exception):
    """A refusal. `code` is the outer word, `inner` the one that tells what really happened."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        inner: str = "",
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.inner = inner
        self.param = param
        self.headers = headers or {}


def user_error(message: str, *, inner: str = "BadArgument", status: int = 400) -> ServiceError:
    """What the service says to a request that is wrong."""
    return ServiceError(status, "UserError", message, inner=inner)


def not_found(what: str, name: str) -> ServiceError:
    return ServiceError(404, "UserError", f"{what} {name} was not found.", inner="NotFoundError")


def conflict(message: str) -> ServiceError:
    return ServiceError(409, "UserError", message, inner="ConflictError")


def unauthorized(message: str, realm: str) -> ServiceError:
    challenge = (
        f'Bearer authorization_uri="{realm}", error="invalid_token", error_description="{message}"'
    )
    return ServiceError(
        401, "AuthenticationFailed", message, headers={"WWW-Authenticate": challenge}
    )


def arm_body(error: ServiceError, region: str) -> dict[str, Any]:
    """The envelope that Azure Resource Manager's doors answer with (recorded 2026-03-04)."""
    if not error.inner:
        return {"error": {"code": error.code, "message": error.message}}
    info = {
        "ComponentName": "managementfrontend",
        "Correlation": {"operation": uuid.uuid4().hex, "request": uuid.uuid4().hex[:16]},
        "Environment": region,
        "Location": region,
        "Time": dt.datetime.now(tz=dt.UTC).isoformat(),
        "InnerError": {"code": error.inner, "innerError": None},
    }
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "details": [],
            "additionalInfo": [
                {"type": key, "info": {"value": value}} for key, value in info.items()
            ],
        }
    }


def history_body(error: ServiceError, region: str) -> dict[str, Any]:
    """The envelope of run history; also what `details.error` of a failed run holds."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "details": [],
            "innerError": {"code": error.inner or error.code, "innerError": None},
        },
        "correlation": {"operation": uuid.uuid4().hex, "request": uuid.uuid4().hex[:16]},
        "environment": region,
        "location": region,
        "time": dt.datetime.now(tz=dt.UTC).isoformat(),
        "componentName": "RunHistory",
    }


def blob_body(error: ServiceError) -> str:
    """Azure Storage's XML."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        f"<Error><Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message></Error>"
    )


def openai_body(error: ServiceError) -> dict[str, Any]:
    """What OpenAI's doors and a chat endpoint answer with."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    code = error.inner or error.code
    if error.status == 429:
        kind, code = "requests", "rate_limit_exceeded" if code == "TooManyRequests" else code
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}
