"""From a request to the engine's orders: its prompts as tokens, its limits, and how its tokens are drawn."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_orch.contract import inference as wire
from llama_orch.contract.errors import BadRequest

from . import budget
from .chat.tools import ToolPlan, plan_tools
from .generation import Constraint, Order, Sampling, TextRefused, WrongGrammar
from .grammar.constraint import constraint_of
from .service import Loaded


async def tokens_of(
    loaded: Loaded, client: str, prompts: Sequence[str | list[int]], field: str = "prompt", *, begin: bool = True
) -> list[list[int]]:
    """The tokens of each text, or the tokens that are given.

    Raises BadRequest where the model has no such token or cannot read a text, Busy.
    """
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_tokens(loaded, prompt, field)

    def work() -> list[list[int]]:
        found: list[list[int]] = []
        for prompt in prompts:
            budget.look()
            found.append(_tokenize(loaded, prompt, field, begin=begin) if isinstance(prompt, str) else prompt)
        return found

    # A long text takes a while, and the loop has others to serve.
    return await loaded.texts.run(client, work)


def _tokenize(loaded: Loaded, text: str, field: str, *, begin: bool = True, rendered: bool = False) -> list[int]:
    try:
        return loaded.engine.tokenize(text, begin=begin, rendered=rendered)
    except TextRefused as error:
        raise BadRequest(f"{field}: {error}", code="text_refused") from None


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


async def completion_constraint(loaded: Loaded, client: str, body: wire.CompletionRequest) -> Constraint | None:
    """What holds a completion to a shape. Raises BadRequest where it asks for one that cannot be, Busy."""
    if body.grammar is None and body.response_format is None:
        return None

    def work() -> Constraint | None:
        found = constraint_of(body)
        _check_constraint(loaded, found, "grammar" if body.grammar else "response_format")
        return found

    return await loaded.grammars.run(client, work)


async def chat_plan(loaded: Loaded, client: str, body: wire.ChatRequest) -> tuple[ToolPlan, Constraint | None]:
    """How a chat's tools are told and read, and what holds its answer to a shape. Raises BadRequest, Busy."""

    def work() -> tuple[ToolPlan, Constraint | None]:
        answer = constraint_of(body)
        plan = plan_tools(loaded.template, body, answer)
        constraint = plan.constraint or answer
        field = "tools" if plan.constraint else "grammar" if body.grammar else "response_format"
        _check_constraint(loaded, constraint, field)
        return plan, constraint

    asks = body.tools or body.grammar is not None or body.response_format is not None
    return await (loaded.grammars if asks else loaded.texts).run(client, work)


def _check_constraint(loaded: Loaded, constraint: Constraint | None, field: str) -> None:
    if constraint is None:
        return
    try:
        loaded.engine.check(constraint)
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
    loaded: Loaded,
    client: str,
    messages: list[wire.ChatMessage],
    tools: list[dict[str, Any]] | None,
    turn: wire.Turn,
) -> list[int]:
    """The tokens of a conversation as the model's template writes it. Raises BadRequest, Busy."""

    def work() -> list[int]:
        return _tokenize(loaded, loaded.template.render(messages, tools, turn), "messages", rendered=True)

    return await loaded.texts.run(client, work)


def text_of(loaded: Loaded, tokens: list[int]) -> str:
    """The text that tokens stand for."""
    return b"".join(loaded.engine.piece(token) for token in tokens).decode(errors="replace")
