"""What is asked of the engine and what it gives back, without llama.cpp and without HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from llama_orch.contract.process import FailureCode

FinishReason = Literal["stop", "length"]


class CannotServe(Exception):
    """The model cannot be served at all; becomes the worker's `failure.json`. Names no path."""

    def __init__(self, code: FailureCode, message: str, what_to_do: str) -> None:
        super().__init__(message)
        self.code: FailureCode = code
        self.message = message
        self.what_to_do = what_to_do


class LoadAborted(Exception):
    """Loading ended because the worker is to stop."""


class GenerationFailed(Exception):
    """llama.cpp refused to go on with this request; the next one may well succeed."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a loaded model; `context` is the tokens of one slot."""

    context: int
    trained_context: int
    chat_template: str | None
    bos_text: str
    eos_text: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; a temperature of 0 takes the likeliest."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0


class Listener(Protocol):
    """Whoever wants the tokens; called in the engine's thread."""

    def wanted(self) -> bool:
        """Whether anybody still waits for the answer; asked before each part of a prompt."""
        ...

    def token(self, piece: bytes) -> bool:
        """Take one token's bytes; False ends the generation."""
        ...


class Engine(Protocol):
    """One loaded model. `load` and `generate` belong to one thread; `tokenize`, after `load`, to any."""

    def load(self, progress: Callable[[float], bool]) -> ModelInfo:
        """Load the model; `progress` gets 0 to 1 and returns False to abort. Raises CannotServe, LoadAborted."""
        ...

    def tokenize(self, text: str, *, rendered: bool) -> list[int]:
        """Tokens of `text`; `rendered` says that a chat template has written the special ones already."""
        ...

    def generate(self, prompt: list[int], limit: int, sampling: Sampling, listener: Listener) -> FinishReason:
        """Generate up to `limit` tokens, or until the model or the listener ends. Raises GenerationFailed."""
        ...
