"""Conversations with tools, as models want them whose template asks for something else or knows of no tools."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from llama_orch.contract.inference import ChatMessage, Tool

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_REASON = re.compile(r"raise_exception\(\s*+['\"]([^'\"]*+)")
_NOT = re.compile(r"\bnot\b")
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def as_json(tool: Tool) -> dict[str, Any]:
    """A tool as templates know it; they join its description to other texts without asking."""
    function = tool.function
    described = {"name": function.name, "description": function.description or ""}
    return {"type": "function", "function": {**described, "parameters": function.parameters or NO_PARAMETERS}}


def with_short_ids(messages: list[ChatMessage]) -> list[ChatMessage]:
    """The same conversation with call ids of nine letters and digits, which Mistral's templates insist on."""
    changed: list[ChatMessage] = []
    for message in messages:
        update: dict[str, Any] = {}
        if message.tool_calls:
            update["tool_calls"] = [call.model_copy(update={"id": _short(call.id)}) for call in message.tool_calls]
        if message.tool_call_id is not None:
            update["tool_call_id"] = _short(message.tool_call_id)
        changed.append(message.model_copy(update=update))
    return changed


def in_words(
    messages: list[ChatMessage], tools: list[Tool], template: str, *, several: bool, must: bool
) -> list[ChatMessage]:
    """The same conversation as text alone, with the tools explained at its begin."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or []}
    told: list[ChatMessage] = []
    results = False
    for message in messages:
        if message.role == "tool":
            text = _line("tool_result", name=names.get(message.tool_call_id or ""), content=message.text)
            # Templates may insist that the roles take turns.
            earlier = told.pop().text if results else None
            told.append(_message("user", f"{earlier}\n{text}" if earlier else text))
        elif message.tool_calls:
            lines = [message.text] if message.text else []
            lines += [
                _line("tool_call", name=call.function.name, arguments=_arguments(call.function.arguments))
                for call in message.tool_calls
            ]
            told.append(_message("assistant", "\n".join(lines)))
        else:
            told.append(message)
        results = message.role == "tool"
    if not tools:
        return told
    explained = _explanation(tools, several=several, must=must)
    if _refuses_system(template):
        place = next((number for number, message in enumerate(told) if message.role == "user"), None)
    else:
        place = 0 if told[0].role in ("system", "developer") else None
    if place is None:
        return [_message("system", explained), *told]
    joined = _message(told[place].role, f"{told[place].text}\n\n{explained}")
    return [*told[:place], joined, *told[place + 1 :]]


def _refuses_system(template: str) -> bool:
    """Whether a template says that it knows no system's messages."""
    reasons = (found[1].lower().partition("system") for found in _REASON.finditer(template))
    return any(word and _NOT.search(behind) for _, word, behind in reasons)


def _explanation(tools: list[Tool], *, several: bool, must: bool) -> str:
    functions = "\n".join(json.dumps(as_json(tool)["function"], ensure_ascii=False) for tool in tools)
    lines = [
        "These functions can be called for you. Each line describes one, with a JSON schema of its arguments:",
        functions,
        "",
        "To call a function, answer with nothing but this JSON, filled in:",
        '{"tool_call": {"name": "the name of the function", "arguments": {}}}',
    ]
    if several:
        lines.append("To call several, write one such object after the other, each on a line of its own.")
    lines.append("You are then told what came of it, as a tool_result.")
    if must:
        lines.append("Your answer now must be such a call.")
    else:
        lines.append("Where no function helps, answer in plain words.")
    return "\n".join(lines)


def _line(kind: str, **content: Any) -> str:
    return json.dumps({kind: content}, ensure_ascii=False)


def _message(role: str, text: str) -> ChatMessage:
    # Longer than what a client may send, so it is not checked.
    return ChatMessage.model_construct(role=role, content=text)


def _arguments(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text


def _short(id_: str) -> str:
    return id_ if _SHORT_ID.fullmatch(id_) else hashlib.sha256(id_.encode()).hexdigest()[:9]
