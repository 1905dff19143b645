"""One id per request: taken from `X-Correlation-Id` or made, echoed, passed on and logged."""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import uuid

HEADER = "X-Correlation-Id"
_VALID = re.compile(r"[A-Za-z0-9-]{1,64}")
_current: contextvars.ContextVar[str] = contextvars.ContextVar("correlation_id", default="-")


def take_or_make(given: str | None) -> str:
    """Make `given`, or a new id where it is not a valid one, the current id and return it."""
    value = given if given and _VALID.fullmatch(given) else uuid.uuid4().hex
    _current.set(value)
    return value


def current() -> str:
    """The id of the request being served; "-" outside of one."""
    return _current.get()


class _AddCorrelationId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.correlation_id = _current.get()
        return True


def configure_logging(level: int = logging.INFO) -> None:
    """Log to standard error, one line a record, each with its correlation id."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_AddCorrelationId())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(correlation_id)s] %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("sanic.root", "sanic.server", "sanic.error", "sanic.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
