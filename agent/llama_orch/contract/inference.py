"""What a worker takes and answers: OpenAI's shapes, and the few fields beyond them that llama.cpp's users know.

Requests are read loosely (`openai_request.py`), and `openai_fields.py` says what becomes of fields that are not obeyed.
Source: OpenAI's public API reference, "Completions", "Chat" and "Embeddings"; llama.cpp's server for `timings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from .common import Response
from .openai.chat import ChatRequest, NamedTool, Tool, Turn, Turns
from .openai.completion import CompletionRequest, StreamOptions, TokenList
from .openai.fields import EMBEDDINGS, Rule
from .openai.message import MAX_MESSAGES, ChatMessage
from .openai.request import MAX_TEXT, ModelName, OpenAIRequest

__all__ = [
    "DEADLINE_HEADER",
    "SCOPE_HEADER",
    "ChatAnswer",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatLogprobs",
    "ChatMessage",
    "ChatRequest",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "Embedding",
    "EmbeddingList",
    "EmbeddingRequest",
    "FinishReason",
    "FunctionCalled",
    "NamedTool",
    "PromptTokensDetails",
    "ServedModel",
    "ServedModelList",
    "StreamOptions",
    "Timings",
    "TokenLogprob",
    "TokenizeRequest",
    "Tokens",
    "Tool",
    "ToolCalled",
    "TopLogprob",
    "Turn",
    "Turns",
    "Usage",
    "WorkerHealth",
]

MAX_INPUTS = 2048
# In seconds, from the request's arrival; what is not finished by then is given up and its slot is free.
DEADLINE_HEADER = "X-Request-Timeout"
# Names, from a gateway, whose request it is: what a slot holds is reused within a scope.
SCOPE_HEADER = "X-Llama-Orch-Scope"

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]


class EmbeddingRequest(OpenAIRequest):
    """`POST /v1/embeddings`. `dimensions` is refused where the model has not that many."""

    RULES: ClassVar[Mapping[str, Rule]] = EMBEDDINGS

    input: Text | TokenList | Annotated[list[Text] | list[TokenList], Field(min_length=1, max_length=MAX_INPUTS)]
    model: ModelName = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, le=1_000_000)

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs as a list."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]  # pyright: ignore[reportReturnType]  a list of numbers is one input
        return self.input  # pyright: ignore[reportReturnType]


class TokenizeRequest(Turns):
    """`POST /v1/tokenize`: one of `prompt` and `messages`."""

    model: ModelName = None
    prompt: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give it or messages, and only one of them")
        if self.messages:
            self.turn_after(self.messages)
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


class Timings(Response):
    """What an answer took, as llama.cpp's server tells it: tokens (`_n`) and milliseconds (`_ms`).

    `cache_n` tokens of the prompt were there already, `prompt_n` were read, `predicted_n` were written. Of several
    answers it is the tokens of all of them and the time of the longest.
    """

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


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
    system_fingerprint: str | None = None
    choices: list[CompletionChoice]
    usage: Usage | None = None
    timings: Timings | None = None


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
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings | None = None


class ChatChunk(Response):
    """One event of a chat's stream; a delta has `role` first, then `content` or `tool_calls`, then nothing."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[dict[str, Any]]
    usage: Usage | None = None
    timings: Timings | None = None


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
    """The model of a worker, and the other names that it may be asked for by; `context_per_slot` is in tokens."""

    id: str
    aliases: list[str] = Field(default=[])
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
