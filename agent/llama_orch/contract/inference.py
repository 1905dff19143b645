"""What a worker takes and answers: the OpenAI shapes that version 0.1 serves.

Fields that OpenAI's clients send are accepted where they mean something here; an unknown one is refused, as a
parameter that is silently ignored gives answers that nobody asked for.
Source: OpenAI's public API reference, "Completions" and "Chat".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from .common import Request, Response

MAX_STOPS = 16
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class StreamOptions(Request):
    """What a stream carries beside its text."""

    include_usage: bool = False


class _Sampling(Request):
    model: str | None = Field(default=None, max_length=1024)
    max_tokens: int | None = Field(default=None, ge=1, le=1_048_576)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, le=100_000)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, le=2**32 - 2)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    user: str | None = Field(default=None, max_length=256)

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class CompletionRequest(_Sampling):
    """`POST /v1/completions`."""

    prompt: str = Field(min_length=1, max_length=1_000_000)


class ChatMessage(Request):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str = Field(max_length=1_000_000)
    name: str | None = Field(default=None, max_length=64)


class ChatRequest(_Sampling):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_048_576)


class Usage(Response):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


FinishReason = Literal["stop", "length"]


class CompletionChoice(Response):
    """One completion, or a part of it in a stream."""

    index: int = 0
    text: str
    finish_reason: FinishReason | None
    logprobs: None = None


class Completion(Response):
    """The answer of `POST /v1/completions`, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatAnswer(Response):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(Response):
    """One whole answer."""

    index: int = 0
    message: ChatAnswer
    finish_reason: FinishReason
    logprobs: None = None


class ChatCompletion(Response):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(Response):
    """One event of a chat's stream; a delta has `role` first, then `content`, then nothing."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage | None = None


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
    """`GET /health` of a worker; `percentage` is the part of the model that is loaded, 0 to 100."""

    status: Literal["loading", "idle", "busy", "draining"]
    worker_id: str
    percentage: float
    slots: int
    slots_busy: int
    context_per_slot: int | None = None
