"""From a request to the engine's orders: its prompts as tokens, its limits, and how its tokens are drawn."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import Any

from llama_orch.contract import inference as wire
from llama_orch.contract.errors import BadRequest

from .generation import Constraint, Order, Sampling, WrongGrammar
from .service import Loaded


async def tokens_of(loaded: Loaded, prompt: str | list[int], field: str = "prompt") -> list[int]:
    """The tokens of a text, or tokens that are given. Raises BadRequest where the model has no such token."""
    if not isinstance(prompt, str):
        return check_tokens(loaded, prompt, field)
    # A long text takes a while, and the loop has others to serve.
    return await asyncio.to_thread(loaded.engine.tokenize, prompt)


def check_tokens(loaded: Loaded, tokens: list[int], field: str) -> list[int]:
    """`tokens`, where the model has all of them. Raises BadRequest."""
    if max(tokens) >= loaded.info.vocabulary:
        raise BadRequest(f"{field}: token {max(tokens)} is not one of the model's {loaded.info.vocabulary}")
    return tokens


def check_room(loaded: Loaded, tokens: list[int], field: str, *, spare: int = 1) -> int:
    """How many tokens a slot can take after these; `spare` are needed. Raises BadRequest with both numbers."""
    if not tokens:
        raise BadRequest(f"{field}: nothing is left of it as tokens")
    context = loaded.info.context
    if len(tokens) + spare > context:
        raise BadRequest(
            f"{field}: {len(tokens)} tokens, but a slot holds {context} and needs room for an answer; "
            "shorten it, or start the worker with a larger ctx_per_slot",
            code="context_length_exceeded",
            prompt_tokens=len(tokens),
            context_per_slot=context,
        )
    return context - len(tokens)


def require_text_model(loaded: Loaded) -> None:
    """Raise BadRequest where the model makes vectors and no text."""
    if loaded.info.embedding_length:
        raise BadRequest(
            "model: this one makes embeddings and generates no text; use POST /v1/embeddings",
            code="model_generates_no_text",
        )


async def check_constraint(loaded: Loaded, constraint: Constraint | None, field: str) -> None:
    """Raise BadRequest where llama.cpp does not take the grammar."""
    if constraint is None:
        return
    try:
        await asyncio.to_thread(loaded.engine.check, constraint)
    except WrongGrammar as error:
        raise BadRequest(f"{field}: {error}", code="wrong_grammar") from None


def sampling_of(
    loaded: Loaded, body: wire.CompletionRequest | wire.ChatRequest, constraint: Constraint | None
) -> Sampling:
    """How the request wants its tokens drawn. Raises BadRequest where it names a token that the model has not."""
    biases = tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items())
    if biases:
        check_tokens(loaded, [token for token, _ in biases], "logit_bias")
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repeat_penalty=body.repeat_penalty,
        seed=secrets.randbelow(2**32 - 1) if body.seed is None else body.seed,
        logit_bias=biases,
        constraint=constraint,
        ignore_eos=body.ignore_eos,
    )


def choices(order: Order, count: int) -> list[Order]:
    """The same order `count` times, each with a seed of its own that follows from the first one's."""
    first = order.sampling.seed
    return [
        replace(order, sampling=replace(order.sampling, seed=(first + number) % (2**32 - 1))) for number in range(count)
    ]


async def tokens_of_chat(
    loaded: Loaded, messages: list[wire.ChatMessage], tools: list[dict[str, Any]] | None
) -> list[int]:
    """The tokens of a conversation as the model's template writes it. Raises BadRequest."""

    def work() -> list[int]:
        return loaded.engine.tokenize(loaded.template.render(messages, tools), rendered=True)

    return await asyncio.to_thread(work)


def text_of(loaded: Loaded, tokens: list[int]) -> str:
    """The text that tokens stand for."""
    return b"".join(loaded.engine.piece(token) for token in tokens).decode(errors="replace")
