"""What becomes of the fields of OpenAI's requests that no answer of ours follows.

What OpenAI's own clients send is never refused for its form. A field that a request's type has is obeyed. Of the rest,
what cannot be done and would change the answer is refused by name, and everything else is passed over.
Source: OpenAI's public API reference, "Chat", "Completions" and "Embeddings"; llama.cpp's server and vLLM for fields
that their users know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import PydanticCustomError

# Codes of a 400: a field, or a part of a message, that cannot be obeyed.
UNSUPPORTED_PARAMETER: Final = "unsupported_parameter"
UNSUPPORTED_CONTENT: Final = "unsupported_content"
UNSUPPORTED = frozenset({UNSUPPORTED_PARAMETER, UNSUPPORTED_CONTENT})

Harmless = Callable[[Any, Mapping[str, Any]], bool]


def _never(_: Any, __: Mapping[str, Any]) -> bool:
    return False


@dataclass(frozen=True)
class Rule:
    """A field that is passed over, or, with a `reason`, refused unless its value asks for nothing.

    `harmless` tells that of a value and the request that it stands in; `unless` says the same in words.
    """

    reason: str = ""
    unless: str = ""
    harmless: Harmless = _never


def _unless(reason: str, *values: Any, words: str) -> Rule:
    return Rule(reason, words, lambda value, _: any(value == one for one in values))


def _text_alone(value: Any, _: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and all(one == "text" for one in value)


def _as_many_as_wanted(value: Any, body: Mapping[str, Any]) -> bool:
    return value == 1 or value == body.get("n")


def _not_positive(value: Any, _: Mapping[str, Any]) -> bool:
    return isinstance(value, (int, float)) and value <= 0


PASSED_OVER = Rule()

CHAT: dict[str, Rule] = {
    "audio": Rule("an answer is text and nothing else"),
    "function_call": _unless("it is the older form of tool_choice; send that", "auto", "none", words="`auto`, `none`"),
    "functions": _unless("they are the older form of tools; send those", [], words="empty"),
    "metadata": PASSED_OVER,
    "modalities": Rule("an answer is text and nothing else", '`["text"]`', _text_alone),
    "moderation": Rule("nothing here judges texts"),
    "prediction": PASSED_OVER,
    "prompt_cache_key": PASSED_OVER,
    "prompt_cache_options": PASSED_OVER,
    "prompt_cache_retention": PASSED_OVER,
    "reasoning_effort": PASSED_OVER,
    "safety_identifier": PASSED_OVER,
    "service_tier": PASSED_OVER,
    "store": PASSED_OVER,
    "user": PASSED_OVER,
    "verbosity": PASSED_OVER,
    "web_search_options": Rule("nothing is looked up in the web"),
}
COMPLETIONS: dict[str, Rule] = {
    "best_of": Rule("no answers are thrown away; ask for n of them", "1, or `n`", _as_many_as_wanted),
    "suffix": _unless("no text is written in front of another", "", words="empty"),
    "user": PASSED_OVER,
}
EMBEDDINGS: dict[str, Rule] = {"user": PASSED_OVER}

# What users of other servers know for completions and chats, under another name here or not at all.
_BY_FORMAT = Rule("send response_format, or grammar")
OTHERS: dict[str, Rule] = {
    "chat_template": Rule("the model's own is used"),
    "chat_template_kwargs": _unless("the template is asked for nothing more", {}, words="empty"),
    "dry_multiplier": _unless("it is not known here", 0, words="0"),
    "dynatemp_range": _unless("it is not known here", 0, words="0"),
    "guided_choice": _BY_FORMAT,
    "guided_grammar": _BY_FORMAT,
    "guided_json": _BY_FORMAT,
    "guided_regex": _BY_FORMAT,
    "json_schema": _BY_FORMAT,
    "length_penalty": _unless("it is not known here", 1, words="1"),
    "lora": _unless("no adapters are applied", [], words="empty"),
    "min_tokens": _unless("it is not known here", 0, words="0"),
    "mirostat": _unless("it is not known here", 0, words="0"),
    "n_predict": _unless("send max_tokens", -1, words="-1"),
    "repetition_penalty": _unless("send repeat_penalty", 1, words="1"),
    "stop_token_ids": _unless("send stop", [], words="empty"),
    "structured_outputs": _BY_FORMAT,
    "top_n_sigma": Rule("it is not known here", "0, -1", _not_positive),
    "typical_p": _unless("it is not known here", 1, words="1"),
    "use_beam_search": _unless("it is not known here", False, words="`false`"),
    "xtc_probability": _unless("it is not known here", 0, words="0"),
}


def unsupported(field: str, reason: str) -> PydanticCustomError:
    """What a validator raises where a field cannot be obeyed."""
    return PydanticCustomError(UNSUPPORTED_PARAMETER, "{field}: it cannot be obeyed: {reason}",
                               {"field": field, "reason": reason})  # fmt: skip


def unreadable(field: str, kind: str) -> PydanticCustomError:
    """What a validator raises where a message has a part that is no text."""
    return PydanticCustomError(UNSUPPORTED_CONTENT, "{field}: this model reads text, and no {kind}",
                               {"field": field, "kind": kind})  # fmt: skip


def refuse(body: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise PydanticCustomError where `body` has a field that is refused. A null asks for nothing."""
    for field, value in body.items():
        rule = rules.get(field)
        if value is None or rule is None or not rule.reason or rule.harmless(value, body):
            continue
        raise unsupported(field, rule.reason)
