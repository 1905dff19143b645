"""The table of `docs/api.md` that says what becomes of each field of OpenAI's requests, made from the code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from llama_orch.contract.inference import ChatRequest, CompletionRequest, EmbeddingRequest
from llama_orch.contract.openai.fields import OTHERS, UNSUPPORTED_PARAMETER, Rule
from llama_orch.contract.openai.request import OpenAIRequest

# Our request, and the fields that OpenAI's own client may send with it.
REQUESTS: dict[str, tuple[type[OpenAIRequest], frozenset[str]]] = {
    "chats": (
        ChatRequest,
        frozenset(chat_create_params.CompletionCreateParamsNonStreaming.__annotations__)
        | frozenset(chat_create_params.CompletionCreateParamsStreaming.__annotations__),
    ),
    "completions": (
        CompletionRequest,
        frozenset(completion_create_params.CompletionCreateParamsNonStreaming.__annotations__)
        | frozenset(completion_create_params.CompletionCreateParamsStreaming.__annotations__),
    ),
    "embeddings": (EmbeddingRequest, frozenset(embedding_create_params.EmbeddingCreateParams.__annotations__)),
}


def rule_words(rule: Rule) -> str:
    """What becomes of a field that has this rule."""
    if not rule.reason:
        return "passed over"
    return f"`{UNSUPPORTED_PARAMETER}`" + (f", unless {rule.unless}" if rule.unless else "")


def cell(model: type[OpenAIRequest], known: frozenset[str], field: str) -> str:
    """What becomes of `field` in a request of this type."""
    if field not in known:
        return "–"
    if field in model.model_fields:
        return "obeyed"
    return rule_words(model.RULES[field])


def table() -> list[str]:
    """The lines of the table."""
    fields = sorted(frozenset().union(*(known for _, known in REQUESTS.values())))
    lines = [f"| field | {' | '.join(REQUESTS)} |", "|---|" + "---|" * len(REQUESTS)]
    for field in fields:
        cells = [cell(model, known, field) for model, known in REQUESTS.values()]
        lines.append(f"| `{field}` | {' | '.join(cells)} |")
    return lines


def others() -> list[str]:
    """The lines about fields that users of other servers know."""
    return ["| field of other servers | completions and chats |", "|---|---|"] + [
        f"| `{field}` | {rule_words(rule)}: {rule.reason} |" for field, rule in sorted(OTHERS.items())
    ]


def harmful(rules: Mapping[str, Rule]) -> list[tuple[str, Any]]:
    """Each field that is refused, with a value that asks for something."""
    return [(field, {"x": 1}) for field, rule in rules.items() if rule.reason]
