"""What a download's process says, line by line: checked by the agent, whatever that process became."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from ...problems import ToldFailure


class Mark(BaseModel):
    """It began, or the model is ready."""

    event: Literal["started", "ready"]


class Progress(BaseModel):
    """So many bytes are there, or checked."""

    event: Literal["downloading", "verifying"]
    done: int = Field(ge=0)


class Failure(ToldFailure):
    """It cannot be had, or not now."""

    event: Literal["failed"] = "failed"


Line = Mark | Progress | Failure
LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="event")])
