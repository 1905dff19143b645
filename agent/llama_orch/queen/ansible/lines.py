"""What the process of a run tells, line by line, as `run_child.py` writes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from llama_orch.contract.queen import Outcome


class PlayLine(BaseModel):
    """A play begins."""

    kind: Literal["play"]
    play: str


class TaskLine(BaseModel):
    """A task begins, or has ended on a host; `duration_s` is seconds, `ignored` one whose failure changes nothing."""

    kind: Literal["task"]
    task: str
    outcome: Outcome
    host: str | None = None
    duration_s: float | None = None
    ignored: bool = False
    message: str | None = None


class Stats(BaseModel):
    """What Ansible counted, by host."""

    failures: dict[str, int]
    dark: dict[str, int]
    processed: dict[str, int]


class ResultLine(BaseModel):
    """The last line: how the run ended. No `stats` where Ansible did not come that far."""

    kind: Literal["result"]
    status: str
    stats: Stats | None
    output: str


RunLine = Annotated[PlayLine | TaskLine | ResultLine, Field(discriminator="kind")]
_ANY: TypeAdapter[PlayLine | TaskLine | ResultLine] = TypeAdapter(RunLine)


def parse(line: bytes) -> PlayLine | TaskLine | ResultLine | None:
    """What a line tells; None where it is garbage."""
    try:
        return _ANY.validate_json(line)
    except ValidationError:
        return None
