"""Why a worker or a download cannot be: kept as a Problem beside it, shown by the API, told to who asked for it."""

from __future__ import annotations

from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError

from llama_orch.contract.common import Problem
from llama_orch.contract.errors import ApiError, BadRequest, DoesNotFit, NotFound, NotReady, UpstreamFailed

# As what a client is told of it, by its code; the rest is the fault of something that the hive needs.
_KINDS: dict[str, type[ApiError]] = {
    "model_not_found": NotFound,
    "file_not_found": NotFound,
    "model_gated": BadRequest,
    "hub_token_refused": BadRequest,
    "model_unreadable": BadRequest,
    "model_truncated": BadRequest,
    "model_not_read": NotReady,
}
# What may come by waiting: memory that others took, a GPU that is hot or does not answer, a port.
_PASSING = frozenset({DoesNotFit.code, "device_cordoned", "no_free_port"})


class Failed(ApiError):
    """Something cannot be done; `problem` says why and what to do. `retry`: later it may work by itself."""

    def __init__(self, code: str, message: str, what_to_do: str = "", *, retry: bool = False, **details: Any) -> None:
        super().__init__(f"{message}: {what_to_do}" if what_to_do else message, code=code, **details)
        kind = _KINDS.get(code, UpstreamFailed)
        self.status, self.type = kind.status, kind.type
        self.problem = Problem(code=code, message=message, what_to_do=what_to_do)
        self.retry = retry


class NeverFits(DoesNotFit):
    """It needs more than the whole device has: no waiting helps."""


def problem_of(error: ApiError) -> Problem:
    """The error as it is kept beside what failed."""
    return error.problem if isinstance(error, Failed) else Problem(code=error.error_code, message=error.message)


def may_pass(error: ApiError) -> bool:
    """Whether what is in the way may be gone later."""
    if isinstance(error, Failed):
        return error.retry
    return error.error_code in _PASSING and not isinstance(error, NeverFits)


class ToldFailure(BaseModel):
    """A failure as a process of ours tells it to the one that asked."""

    problem: Problem
    retry: bool
    details: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, failed: Failed) -> Self:
        """The failure, to be told."""
        return cls(problem=failed.problem, retry=failed.retry, details=failed.details)

    def as_failed(self) -> Failed:
        """The same to be raised here."""
        problem = self.problem
        return Failed(problem.code, problem.message, problem.what_to_do, retry=self.retry, **self.details)


M = TypeVar("M", bound=BaseModel)


def answered(said: bytes, kind: type[M]) -> M:
    """What a process of ours answered. Raises ValueError where that is no answer, and the failure that it told."""
    try:
        return kind.model_validate_json(said)
    except ValidationError:
        raise ToldFailure.model_validate_json(said).as_failed() from None
