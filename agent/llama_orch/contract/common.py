"""Base classes of the wire types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """A body that a client sends: unknown fields are named in a 400, types are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Response(BaseModel):
    """A body that we answer. Clients ignore fields they do not know, so that more may follow."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Problem(Response):
    """A stored failure: what happened, and what a person can do about it."""

    code: str
    message: str
    what_to_do: str = ""
    task: str | None = None
    host: str | None = None


class QueenHealth(Response):
    """Exactly the seed's answer."""

    status: Literal["healthy"] = "healthy"
    version: str


class WorkerCounts(Response):
    """Workers that exist on a hive: all, those waiting for work, those answering."""

    total: int
    idle: int
    busy: int


class HiveHealth(Response):
    """Exactly the seed's answer."""

    status: Literal["healthy"] = "healthy"
    workers: WorkerCounts
