"""Why a worker or a download cannot be: kept as a Problem beside it, shown by the API."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field

from llama_orch.contract.common import Problem
from llama_orch.contract.errors import ApiError, BadRequest, DoesNotFit, NotFound, UpstreamFailed

_AS_ANSWER: dict[str, type[ApiError]] = {
    "model_not_found": NotFound,
    "file_not_found": NotFound,
    "model_gated": BadRequest,
    "hub_token_refused": BadRequest,
}
# What may come by waiting: memory that others took, a GPU that is hot or does not answer, a port.
_PASSING = frozenset({DoesNotFit.code, "device_cordoned", "no_free_port"})


class Failed(Exception):
    """Something cannot be done; the problem says why and what to do. `retry`: later it may work by itself."""

    def __init__(self, code: str, message: str, what_to_do: str = "", *, retry: bool = False, **details: Any) -> None:
        super().__init__(message)
        self.problem = Problem(code=code, message=message, what_to_do=what_to_do)
        self.retry = retry
        self.details = details


def as_answer(failed: Failed) -> ApiError:
    """The same for a client whose request began it."""
    problem = failed.problem
    text = f"{problem.message}: {problem.what_to_do}" if problem.what_to_do else problem.message
    return _AS_ANSWER.get(problem.code, UpstreamFailed)(text, code=problem.code, **failed.details)


class NeverFits(DoesNotFit):
    """It needs more than the whole device has: no waiting helps."""


def as_failed(error: ApiError) -> Failed:
    """An answer that nobody waits for, as the reason kept beside what failed."""
    retry = error.error_code in _PASSING and not isinstance(error, NeverFits)
    return Failed(error.error_code, error.message, retry=retry, **error.details)


def failed_as_json(failed: Failed) -> dict[str, Any]:
    """The same for the process that asked another one of ours."""
    return {"problem": failed.problem.model_dump(), "retry": failed.retry, "details": failed.details}


class ToldFailure(BaseModel):
    """What `failed_as_json` told."""

    problem: Problem
    retry: bool
    details: dict[str, Any] = Field(default_factory=dict)

    def as_failed(self) -> Failed:
        """The same to be raised here."""
        problem = self.problem
        return Failed(problem.code, problem.message, problem.what_to_do, retry=self.retry, **self.details)


def answered(said: bytes, field: str) -> Any:
    """What a process of ours answered under that name. Raises ValueError where that is no answer, and Failed."""
    answer = json.loads(said)
    if not isinstance(answer, dict) or not answer.keys() & {field, "problem"}:
        raise ValueError("no answer")
    if "problem" in answer:
        raise ToldFailure.model_validate(answer).as_failed()
    return answer[field]
