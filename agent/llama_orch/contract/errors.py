"""The one tree of errors that reach a client, and the JSON shape they travel in."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What went wrong, for a program (`code`) and for a person (`message`).

    `type` and `param` are what OpenAI's clients know: the kind of error, and the field at fault where it is one.
    """

    code: str
    message: str
    type: str = "server_error"
    param: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    correlation_id: str


class ErrorResponse(BaseModel):
    """The body of every answer outside 2xx."""

    error: ErrorDetail


class ApiError(Exception):
    """Base of everything that a client may be told. `message` says what to do; no path, trace or secret."""

    status: int = 500
    code: ClassVar[str] = "internal_error"
    type: str = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.headers = headers or {}
        self.error_code = code or type(self).code

    @property
    def param(self) -> str | None:
        """The field at fault, where the message begins with its name."""
        found = re.match(r"([A-Za-z_][A-Za-z0-9_.-]{0,63}): ", self.message)
        return found.group(1) if found and self.status == 400 else None


class BadRequest(ApiError):
    """The request is malformed: a field is missing, unknown or out of range."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class Unauthorized(ApiError):
    """No token, or not the right one."""

    status = 401
    code = "unauthorized"
    type = "authentication_error"


class Forbidden(ApiError):
    """Who asks may not: a web page of another site."""

    status = 403
    code = "forbidden"
    type = "permission_error"


class NotFound(ApiError):
    """No such thing, or no such path."""

    status = 404
    code = "not_found"
    type = "not_found_error"


class MethodNotAllowed(ApiError):
    """The path exists, but not with this method."""

    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"


class RequestTimedOut(ApiError):
    """The request did not arrive in time."""

    status = 408
    code = "request_timeout"
    type = "invalid_request_error"


class Conflict(ApiError):
    """It is already there, or it is in use."""

    status = 409
    code = "conflict"
    type = "conflict_error"


class PayloadTooLarge(ApiError):
    """The body is larger than what the server takes."""

    status = 413
    code = "payload_too_large"
    type = "invalid_request_error"


class Busy(ApiError):
    """All slots are taken; try again after `Retry-After` seconds."""

    status = 429
    code = "busy"
    type = "rate_limit_error"


class UpstreamFailed(ApiError):
    """Another service that this answer needs failed or answered nonsense."""

    status = 502
    code = "upstream_failed"


class NotReady(ApiError):
    """The service cannot answer yet, or is going down."""

    status = 503
    code = "not_ready"


class DeadlineExceeded(ApiError):
    """The answer was not complete within the time that the request allowed."""

    status = 504
    code = "deadline_exceeded"


class DoesNotFit(ApiError):
    """There is not enough memory or disk; `details` has needed and available bytes."""

    status = 507
    code = "does_not_fit"


BY_STATUS: dict[int, type[ApiError]] = {
    cls.status: cls
    for cls in (
        BadRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        RequestTimedOut,
        Conflict,
        PayloadTooLarge,
        Busy,
        UpstreamFailed,
        NotReady,
        DeadlineExceeded,
        DoesNotFit,
    )
}
