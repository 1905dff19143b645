"""How a request of OpenAI's shape is read: as loosely as clients write it. Our own `/api/v1` is strict: `common.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .fields import Rule, refuse

MAX_TOKENS = 1_048_576
# As large as the largest body: a text of it is never too long for its form.
MAX_TEXT = 16 * 1024 * 1024
# Of what is neither text nor a list of tokens: a large body of small parts would take seconds to look at.
MAX_PARTS = 100_000


class OpenAIRequest(BaseModel):
    """A part of a request. A null is the field's default, and a field that is not known is passed over.

    `RULES` says what becomes of known fields that are not obeyed.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    RULES: ClassVar[Mapping[str, Rule]] = {}

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_sent(cls, body: Any) -> Any:
        return cls.read(body) if isinstance(body, dict) else body

    @classmethod
    def read(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The fields of `body` in the one form that is checked. Raises PydanticCustomError for what is refused."""
        refuse(body, cls.RULES)
        return {name: value for name, value in body.items() if value is not None}


def of_some_size(value: Any, most: int) -> Any:
    """The same value. Raises ValueError where it has more than `most` parts, however deep."""
    left: list[Any] = [value]
    seen = 0
    while left:
        part = left.pop()
        inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        seen += 1 + len(inside)
        if seen > most:
            raise ValueError(f"has more than {most} parts")
        left += [one for one in inside if isinstance(one, (dict, list))]
    return value


def whole(value: Any) -> Any:
    """A whole number also where it was written with a fraction of nothing: `100.0`."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _limit(value: Any) -> Any:
    value = whole(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    # Some clients write "no limit" so.
    return None if value == -1 else min(value, MAX_TOKENS)


def _model(value: Any) -> Any:
    return None if value == "" else value


# How many tokens an answer may have.
Limit = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_limit)]
LimitOrNothing = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_limit)]
ModelName = Annotated[Annotated[str, Field(max_length=1024)] | None, BeforeValidator(_model)]
