"""The one place that turns an exception into an answer. No stack trace, path or secret reaches a client."""

from __future__ import annotations

import functools
import logging
import re

from pydantic import BaseModel, ValidationError
from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import SanicException

from llama_orch.contract.common import Request as StrictRequest
from llama_orch.contract.errors import BY_STATUS, ApiError, BadRequest, ErrorDetail, ErrorResponse
from llama_orch.contract.openai.fields import UNSUPPORTED
from llama_orch.contract.openai.request import OpenAIRequest

from . import correlation

log = logging.getLogger(__name__)
_TRIED = re.compile(r"(?:constrained-[a-z]+|(?:function-[a-z]+|[a-z-]+)\[.*\])", re.DOTALL)
_FIELD_FIRST = re.compile(r"([a-z_][a-z0-9_.]*): (.+)", re.DOTALL)
# What pydantic says of these names our own classes.
_PLAINER = {"model_type": "must be an object", "model_attributes_type": "must be an object"}


def install(app: Sanic) -> None:
    """Answer every exception of `app` with the contract's error body."""
    app.exception(Exception)(_answer)


def body_of(error: ApiError) -> ErrorResponse:
    """The wire form of `error`."""
    return ErrorResponse(
        error=ErrorDetail(
            code=error.error_code,
            message=error.message,
            type=error.type,
            param=error.param,
            details=error.details,
            correlation_id=correlation.current(),
        )
    )


def as_api_error(error: BaseException, max_body_bytes: int = 0) -> ApiError:
    """Whatever was raised, as an error a client may see; what is not known is logged and hidden."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, SanicException) and error.status_code in BY_STATUS:
        return _from_sanic(error, max_body_bytes)
    if isinstance(error, SanicException) and 400 <= error.status_code < 500:
        return BadRequest("the request could not be understood")
    log.error("unexpected error", exc_info=error)
    return ApiError("an unexpected error happened; the service's log has it under this correlation_id")


def from_validation(error: ValidationError, what: str = "body") -> BadRequest:
    """A 400 that names each field at fault; the offending values are not repeated, as they may be secrets."""
    fields = []
    code = None
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        unknown = item["type"] == "extra_forbidden"
        code = item["type"] if item["type"] in UNSUPPORTED else code
        # The name of an unknown field is the client's own, whatever it looks like.
        shown = [str(part) for part in item["loc"][:-1] if not _is_internal(part)]
        shown += [str(part) for part in item["loc"][-1:] if unknown or not _is_internal(part)]
        path = ".".join(shown)
        if unknown:
            problem = "unknown field"
        elif item["type"] == "missing":
            problem = "required, but missing"
        else:
            problem = _PLAINER.get(item["type"], item["msg"].removeprefix("Value error, "))
            # What concerns several fields of one part names the one to change first.
            if found := _FIELD_FIRST.match(problem):
                path, problem = ".".join(filter(None, (path, found[1]))), found[2]
        fields.append({"field": path or what, "problem": problem})
    summary = "; ".join(f"{entry['field']}: {entry['problem']}" for entry in fields[:10])
    return BadRequest(summary, code=code, fields=fields[:100])


def _is_internal(part: str | int) -> bool:
    """Whether a step of pydantic's to a value is no field, but says as which of several types it was tried."""
    return isinstance(part, str) and (part in _own_types() or _TRIED.fullmatch(part) is not None)


@functools.cache
def _own_types() -> frozenset[str]:
    """The names of our own classes, by which pydantic says as which of several types a value was tried."""
    found: list[type[BaseModel]] = [OpenAIRequest, StrictRequest]
    for kind in found:
        found += kind.__subclasses__()
    return frozenset({"__root__", *(kind.__name__ for kind in found)})


def _from_sanic(error: SanicException, max_body_bytes: int) -> ApiError:
    messages = {
        400: "the request could not be understood",
        404: "no such path; GET /openapi.json lists them",
        403: "this may not be asked",
        405: "this path does not take this method",
        408: "the request did not arrive in time: its head within 10 s, its body within 30 s more",
        413: f"the body is too large: at most {max_body_bytes / 2**20:g} MiB, and its head at most 8 KiB",
        503: "the request took too long, or the service is stopping",
    }
    kind = BY_STATUS[error.status_code]
    return kind(messages.get(error.status_code, "the request could not be answered"), headers=dict(error.headers or {}))


async def _answer(request: Request, error: Exception) -> HTTPResponse:
    known = as_api_error(error, request.app.config.REQUEST_MAX_SIZE)
    headers = dict(known.headers)
    if known.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return HTTPResponse(
        body_of(known).model_dump_json(),
        status=known.status,
        headers=headers,
        content_type="application/json",
    )
