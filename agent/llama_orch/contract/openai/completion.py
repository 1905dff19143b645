"""What completions and chats have in common, and completions.

Source: OpenAI's public API reference, "Completions"; the fields beyond it are those of llama.cpp's server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from .fields import COMPLETIONS, OTHERS, Rule
from .request import (  # fmt: skip
    MAX_PARTS,
    MAX_TEXT,
    MAX_TOKENS,
    Limit,
    LimitOrNothing,
    ModelName,
    OpenAIRequest,
    of_some_size,
    whole,
)

MAX_STOPS = 64
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_GRAMMAR = 65_536
# llama.cpp takes the last of 32 bits for a seed of its own choice.
SEEDS = 2**32 - 1

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenList = Annotated[list[Token], Field(min_length=1, max_length=MAX_TOKENS)]


JsonSchema = Annotated[dict[str, Any], BeforeValidator(partial(of_some_size, most=MAX_PARTS))]


def _stops(value: Any) -> Any:
    if isinstance(value, list):
        return [one for one in value if one not in ("", None)]
    return None if value == "" else value


def _seed(value: Any) -> Any:
    value = whole(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    # llama.cpp's users write "any" so.
    return None if value == -1 else value % SEEDS


def _top_k(value: Any) -> Any:
    value = whole(value)
    return 0 if value == -1 else value


class StreamOptions(OpenAIRequest):
    """What a stream carries beside its text. Nothing is ever added to obfuscate its length."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaFormat(OpenAIRequest):
    """The schema of `response_format: json_schema`; without `strict`, a pattern that none can hold is passed over."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, serialize_by_alias=True)

    name: str = Field(default="answer", max_length=256)
    description: str | None = Field(default=None, max_length=MAX_GRAMMAR)
    json_schema: JsonSchema = Field(alias="schema", default_factory=dict)
    strict: bool = False


class ResponseFormat(OpenAIRequest):
    """What the answer must look like; `json_schema` is needed with the type of that name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @classmethod
    def read(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The same with the schema where OpenAI has it; other servers know it beside the type."""
        fields = super().read(body)
        schema = fields.pop("schema", None)
        if schema is not None and fields.get("type") in ("json_object", "json_schema"):
            fields = {"json_schema": {"schema": schema}, **fields, "type": "json_schema"}
        if fields.get("type") != "json_schema":
            fields.pop("json_schema", None)
        return fields

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema: it is needed with type json_schema")
        return self


class Sampling(OpenAIRequest):
    """How an answer is drawn, how long it may become and how it is handed out."""

    model: ModelName = None
    max_tokens: Limit = None
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, ge=0.0, le=1.0)
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_top_k)] = 0
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: Annotated[int | None, BeforeValidator(_seed)] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_stops)
    ] = None
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    repeat_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)
    response_format: ResponseFormat | None = None
    grammar: str | None = Field(default=None, min_length=1, max_length=MAX_GRAMMAR)
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), BeforeValidator(whole)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not re.fullmatch(r"[0-9]{1,10}", token):
                raise ValueError("each key is a token's number")
            if not -100 <= bias <= 100:
                raise ValueError("each bias is from -100 to 100")
        return value

    @model_validator(mode="after")
    def _one_shape(self) -> Sampling:
        if self.grammar is not None and self.response_format is not None and self.response_format.type != "text":
            raise ValueError("grammar: it and response_format exclude each other")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


PromptText = Annotated[str, StringConstraints(max_length=MAX_TEXT)]


class CompletionRequest(Sampling):
    """`POST /v1/completions`. A prompt is a text, tokens, or a list of either."""

    RULES: ClassVar[Mapping[str, Rule]] = {**OTHERS, **COMPLETIONS}

    prompt: (
        PromptText
        | TokenList
        | Annotated[list[PromptText] | list[TokenList], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: LimitOrNothing = None
    echo: bool = False
    logprobs: Annotated[Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, BeforeValidator(whole)] = None

    @classmethod
    def read(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The same; a prompt that is null is the beginning of a new text."""
        fields = super().read(body)
        return {**fields, "prompt": ""} if "prompt" in body and body["prompt"] is None else fields

    @model_validator(mode="after")
    def _writes_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 needs echo: true")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # pyright: ignore[reportReturnType]  a list of numbers is one prompt
        return self.prompt  # pyright: ignore[reportReturnType]
