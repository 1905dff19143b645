"""What is asked of the engine and what it gives back, without llama.cpp and without HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llama_orch.contract.process import FailureCode

from .scheduler import Part

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


class TooAmbiguous(GenerationFailed):
    """The request's grammar takes more for a token than it may."""


class TextRefused(Exception):
    """The text cannot be made into tokens of this model at a price that one request may have; says why."""


class WrongGrammar(Exception):
    """llama.cpp does not take the grammar, or cannot make one of the schema; says why where that is known.

    `plain` says the same without the names of the grammar's rules, to whom has not written it.
    """

    def __init__(self, reason: str, plain: str | None = None) -> None:
        super().__init__(reason)
        self.plain = plain or reason


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a loaded model; `context` is the tokens of one slot.

    A model has `embedding_length` above 0 where it was made for vectors; such a one generates no text.
    """

    context: int
    trained_context: int
    vocabulary: int
    chat_template: str | None
    bos_text: str
    eos_text: str
    embedding_length: int = 0
    # Whether a sequence may take over what another one holds.
    can_copy: bool = False
    # What the longest step that a request can bring takes, as the warm-up measured or reckoned it.
    step_seconds: float = 0.0


@dataclass(frozen=True)
class Constraint:
    """What an answer must look like: a GBNF grammar whose rule `root` describes the text.

    With `after`, the text is free until one of these words has come, and the grammar describes what follows it.
    """

    grammar: str
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; a temperature of 0 takes the likeliest."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
    ignore_eos: bool = False


@dataclass(frozen=True)
class Logprob:
    """The natural logarithm of a token's probability before any sampler, and of the likeliest ones beside it.

    The first token of a prompt follows on nothing and has none.
    """

    token: int
    value: float | None
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Order:
    """One sequence's work: a prompt and how to go on from it.

    `logprobs` is how many likeliest tokens to tell beside each token, None for none. `echo` is the prompt's text where
    the answer is to begin with it; its probabilities are told as well then. `special` prints tokens that mark
    something, such as the begin of a tool's call. `scope` says whose it is: what a sequence holds of one is reused by
    the same scope alone. `client` is its scope where what is fair between clients is decided, reused or not.
    """

    prompt: list[int]
    limit: int
    sampling: Sampling
    stops: Sequence[str] = ()
    logprobs: int | None = None
    echo: str | None = None
    special: bool = False
    scope: str = ""
    client: str = ""


@dataclass(frozen=True)
class Ending:
    """How an answer ended, after its last text, and the seconds that its prompt and its tokens took."""

    reason: FinishReason
    prompt_tokens: int
    tokens: int
    reused: int
    prompt_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Text that may be shown, and the tokens that were drawn for it where their probabilities are wanted."""

    text: str
    logprobs: list[Logprob] = field(default_factory=list)


class Engine(Protocol):
    """One loaded model and its context.

    `tokenize`, `piece` and `check` belong to any thread once the model is loaded, the rest to the one that loads it.
    """

    def load(self, progress: Callable[[float], bool]) -> ModelInfo:
        """Load the model; `progress` gets 0 to 1 and returns False to abort. Raises CannotServe, LoadAborted."""
        ...

    def tokenize(self, text: str, *, begin: bool = True, rendered: bool = False) -> list[int]:
        """Tokens of `text`, with the model's first token where `begin` says so.

        `rendered` says that a chat template has written the special ones already. Raises TextRefused.
        """
        ...

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token stands for; those of a special token only where they are wanted."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        ...

    def check(self, constraint: Constraint) -> None:
        """Raise WrongGrammar where llama.cpp does not take the grammar."""
        ...

    def sampler(self, sampling: Sampling) -> Sampler:
        """What draws a request's tokens. Raises WrongGrammar."""
        ...

    def decode(self, parts: list[Part]) -> None:
        """Compute the parts in one batch; rows of logits are counted over the batch's outputs in their order.

        Raises GenerationFailed; what the parts' sequences hold is unknown then.
        """
        ...

    def logprob(self, row: int, token: int, top: int) -> Logprob:
        """How likely `token` was in a row of the last decode, and which `top` tokens were likeliest."""
        ...

    def keep(self, sequence: int, count: int) -> bool:
        """Take all but the first `count` tokens out of a sequence's memory; False where only nothing could be kept."""
        ...

    def copy(self, source: int, target: int, count: int) -> bool:
        """Let `target` hold the first `count` tokens of `source`; False where it holds nothing then."""
        ...

    def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        """One vector of length 1 for each input, all in one batch. Raises GenerationFailed."""
        ...


class Sampler(Protocol):
    """Draws one request's tokens, with randomness of its own. Belongs to the engine's thread.

    `taken` is the CPU time in seconds that a grammar took for the last token.
    """

    taken: float

    def draw(self, row: int) -> int:
        """The next token from a row of the last decode. Raises GenerationFailed where none fits the grammar."""
        ...

    def free(self) -> None:
        """Give its memory back; it draws no more."""
        ...
