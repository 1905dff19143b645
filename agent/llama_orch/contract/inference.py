"""What a worker takes and answers: OpenAI's shapes, and the few fields beyond them that llama.cpp's users know.

Fields that OpenAI's clients send are accepted where they mean something here; an unknown one is refused, as a
parameter that is silently ignored gives answers that nobody asked for.
Source: OpenAI's public API reference, "Completions", "Chat" and "Embeddings".
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from .common import Request, Response

MAX_STOPS = 64
MAX_TOKENS = 1_048_576
MAX_TEXT = 1_000_000
MAX_CHOICES = 64
MAX_LOGPROBS = 20
MAX_INPUTS = 2048
MAX_GRAMMAR = 65_536
# In seconds, from the request's arrival; what is not finished by then is given up and its slot is free.
DEADLINE_HEADER = "X-Request-Timeout"
# Names, from a gateway, whose request it is: what a slot holds is reused within a scope.
SCOPE_HEADER = "X-Llama-Orch-Scope"

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenList = Annotated[list[Token], Field(min_length=1, max_length=MAX_TOKENS)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
JsonSchema = dict[str, Any]


class StreamOptions(Request):
    """What a stream carries beside its text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaFormat(Request):
    """The schema of `response_format: json_schema`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, serialize_by_alias=True)

    name: ToolName = "answer"
    description: str | None = Field(default=None, max_length=4096)
    json_schema: JsonSchema = Field(alias="schema", default_factory=dict)
    strict: bool | None = None


class ResponseFormat(Request):
    """What the answer must look like; `json_schema` is needed with the type of that name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: it goes with type json_schema, and with that alone")
        return self


class _Sampling(Request):
    model: str | None = Field(default=None, max_length=1024)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, le=100_000)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, le=2**32 - 2)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    repeat_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)
    response_format: ResponseFormat | None = None
    grammar: str | None = Field(default=None, min_length=1, max_length=MAX_GRAMMAR)
    ignore_eos: bool = False
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=256)

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
    def _one_shape(self) -> _Sampling:
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


class CompletionRequest(_Sampling):
    """`POST /v1/completions`. A prompt is a text, tokens, or a list of either."""

    prompt: Text | TokenList | Annotated[list[Text] | list[TokenList], Field(min_length=1, max_length=MAX_CHOICES)]
    max_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

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


class FunctionCall(Request):
    """A function that the model calls; `arguments` is JSON in a string."""

    name: ToolName
    arguments: str = Field(max_length=MAX_TEXT)


class ToolCall(Request):
    """One call in an assistant's message."""

    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionCall


class TextPart(Request):
    """One part of a message's content."""

    type: Literal["text"] = "text"
    text: str = Field(max_length=MAX_TEXT)


class ChatMessage(Request):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = Field(default=None)
    name: str | None = Field(default=None, max_length=64)
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=128)
    tool_call_id: str | None = Field(default=None, max_length=128)
    refusal: None = None

    @field_validator("content")
    @classmethod
    def _not_too_long(cls, value: str | list[TextPart] | None) -> str | list[TextPart] | None:
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"at most {MAX_TEXT} characters")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content: missing; only an assistant's message with tool_calls may have none")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls: they belong to the assistant's messages")
        return self

    @property
    def text(self) -> str | None:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content


class Function(Request):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: ToolName
    description: str | None = Field(default=None, max_length=MAX_GRAMMAR)
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Request):
    """One tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Request):
    """The function of a named tool choice."""

    name: ToolName


class NamedTool(Request):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(_Sampling):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs: true")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) != len(names):
            raise ValueError("tools: two functions have the same name")
        if not names and self.tool_choice not in (None, "none"):
            raise ValueError("tool_choice: needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice: it names a function that is not among tools")
        constrained = self.grammar or (self.response_format and self.response_format.type != "text")
        if constrained and names and self.tool_choice != "none":
            raise ValueError("tools: they exclude grammar and response_format")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens that the answer may have; the newer of OpenAI's two names wins."""
        return self.max_completion_tokens or self.max_tokens


class EmbeddingRequest(Request):
    """`POST /v1/embeddings`. `dimensions` is refused where the model has not that many."""

    input: Text | TokenList | Annotated[list[Text] | list[TokenList], Field(min_length=1, max_length=MAX_INPUTS)]
    model: str | None = Field(default=None, max_length=1024)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, le=1_000_000)
    user: str | None = Field(default=None, max_length=256)

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs as a list."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]  # pyright: ignore[reportReturnType]  a list of numbers is one input
        return self.input  # pyright: ignore[reportReturnType]


class TokenizeRequest(Request):
    """`POST /v1/tokenize`: one of `prompt` and `messages`."""

    model: str | None = Field(default=None, max_length=1024)
    prompt: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=4096)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give it or messages, and only one of them")
        return self


class Tokens(Response):
    """The answer of `POST /v1/tokenize`; `context_per_slot` is what a slot holds."""

    tokens: list[int]
    count: int
    context_per_slot: int


class PromptTokensDetails(Response):
    """How many tokens of the prompt a slot held already."""

    cached_tokens: int = 0


class Usage(Response):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class CompletionLogprobs(Response):
    """Log probabilities of a completion's tokens; the first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Response):
    """One completion, or a part of it in a stream."""

    index: int = 0
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None = None


class Completion(Response):
    """The answer of `POST /v1/completions`, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(Response):
    """One of the likeliest tokens; `bytes` is its UTF-8, also where that is no whole character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was drawn, beside those that were likeliest."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Response):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCalled(Response):
    """A function that the model calls; `arguments` is JSON in a string."""

    name: str
    arguments: str


class ToolCalled(Response):
    """One call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCalled


class ChatAnswer(Response):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[ToolCalled] | None = None
    refusal: None = None


class ChatChoice(Response):
    """One whole answer."""

    index: int = 0
    message: ChatAnswer
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Response):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(Response):
    """One event of a chat's stream; a delta has `role` first, then `content` or `tool_calls`, then nothing."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage | None = None


class Embedding(Response):
    """One vector; with `base64` its little-endian 32-bit floats."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Response):
    """The answer of `POST /v1/embeddings`."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class ServedModel(Response):
    """The model of a worker; `context_per_slot` is in tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llama-orch"
    context_per_slot: int
    slots: int


class ServedModelList(Response):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class WorkerHealth(Response):
    """`GET /health` of a worker; `percentage` is the part of the model that is loaded, 0 to 100.

    `tokens_per_second` is what all slots together generated over the last seconds. `overloaded` is a worker that lets
    no request through at the moment, for this `reason`. `confined`: it can reach no files but
    those that it needs. `engine_silent_seconds`: for how long the thread that computes has neither ended a step nor
    answered; `longest_step_seconds`: what the longest of its steps took, those of the warm-up too.
    """

    status: Literal["loading", "idle", "busy", "overloaded", "draining"]
    reason: str | None = None
    worker_id: str
    percentage: float
    slots: int
    slots_busy: int
    queued: int = 0
    tokens_per_second: float = 0.0
    context_per_slot: int | None = None
    confined: bool = False
    engine_silent_seconds: float = 0.0
    longest_step_seconds: float = 0.0
