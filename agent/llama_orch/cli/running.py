"""How a command runs and how it fails: status 1 for what a service says, 2 for what the user gave, 130 for Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from llama_orch.client import NoAnswer, NotTheService
from llama_orch.contract.errors import ApiError, Busy, DoesNotFit, Unauthorized

from .connection import Unusable
from .output import err, line, size

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)


class Failed(Exception):
    """The work that was asked for ended without success; the message says how. Status 1."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end; what goes wrong becomes a message and an exit status."""
    try:
        return asyncio.run(work)
    except (ApiError, Failed, Unusable) as error:
        raise typer.Exit(tell_any(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def request(kind: type[R], **fields: Any) -> R:
    """A request of the contract; what it does not allow is the user's mistake. Fields that are None are left out."""
    try:
        return kind(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or kind.__name__}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        complain("; ".join(problems))
        raise typer.Exit(2) from None


def complain(text: str) -> None:
    """One line that starts with what it is."""
    line(f"error: {text}", style="red", console=err)


def tell_any(error: ApiError | Failed | Unusable) -> int:
    """Tell what went wrong; returns the exit status for it."""
    if isinstance(error, ApiError):
        tell(error)
    else:
        complain(str(error))
    return 2 if isinstance(error, Unusable) else 1


def tell(error: ApiError) -> None:
    """An error of a service, with what to do about it."""
    complain(error.message)
    if (advice := _advice(error)) is not None:
        line(advice, console=err)
    identity = error.details.get("correlation_id")
    if error.status >= 500 and identity:
        line(f"the service's log has more under correlation id {identity}", console=err)


def _advice(error: ApiError) -> str | None:
    if isinstance(error, (Unauthorized, NotTheService)):
        return "The token is not the one of this service: each machine has its own api-token; see --token-file."
    if isinstance(error, NoAnswer):
        return (
            "Is it running there? 'llama-orch up' starts queen and hive on this machine; "
            "--queen URL and --hive URL name others."
        )
    if isinstance(error, Busy):
        after = error.headers.get("Retry-After")
        return f"Try again in {after} s." if after else "Try again in a moment."
    if isinstance(error, DoesNotFit):
        needed, available = error.details.get("needed_bytes"), error.details.get("available_bytes")
        if isinstance(needed, int) and isinstance(available, int):
            return f"Needed: {size(needed)}, available: {size(available)}."
    return None
