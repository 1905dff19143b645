"""The messages of a conversation, as clients send them: their own, and a model's answers sent back as they came.

Source: OpenAI's public API reference, "Chat".
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .fields import unreadable
from .request import MAX_PARTS, MAX_TEXT, OpenAIRequest, of_some_size

MAX_MESSAGES = 4096
# Of one message's content.
MAX_CONTENT_PARTS = 4096
# Some gateways put what a model thought into its calls' ids.
MAX_ID = 65_536
MAX_NAME = 256

# Parts of a content that are text, and where they have it.
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# What a model thought before its answer is told by no template that is known here.
_THOUGHTS = {"thinking", "redacted_thinking", "reasoning"}
_KINDS = {
    "image_url": "images (image_url)",
    "input_image": "images (input_image)",
    "image": "images (image)",
    "input_audio": "sound (input_audio)",
    "audio": "sound (audio)",
    "file": "files (file)",
    "input_file": "files (input_file)",
    "video_url": "films (video_url)",
}


class FunctionCall(OpenAIRequest):
    """A function that the model has called; `arguments` is JSON in a string."""

    name: str = Field(min_length=1, max_length=MAX_NAME)
    arguments: str = Field(default="", max_length=MAX_TEXT)

    @classmethod
    def read(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The same with the arguments as a text, also where they were sent as what they stand for."""
        fields = super().read(body)
        if isinstance(fields.get("arguments"), (dict, list)):
            fields["arguments"] = json.dumps(of_some_size(fields["arguments"], MAX_PARTS), ensure_ascii=False)
        return fields


class ToolCall(OpenAIRequest):
    """One call in an assistant's message."""

    id: str = Field(default="call_0", max_length=MAX_ID)
    type: Literal["function"] = "function"
    function: FunctionCall

    @classmethod
    def read(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The same as a call of a function: a stream's deltas put together may have lost or doubled its type."""
        fields = {name: value for name, value in super().read(body).items() if name not in ("type", "custom")}
        custom = body.get("custom")
        if isinstance(custom, dict) and "function" not in fields:
            fields["function"] = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
        if fields.get("id") == "":
            del fields["id"]
        return fields


class TextPart(OpenAIRequest):
    """One part of a message's content."""

    type: Literal["text"] = "text"
    text: Annotated[str, Field(max_length=MAX_TEXT)]


class ChatMessage(OpenAIRequest):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=MAX_TEXT)] | list[TextPart] | None = None
    name: str | None = Field(default=None, max_length=MAX_NAME)
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=128)
    tool_call_id: str | None = Field(default=None, max_length=MAX_ID)

    @classmethod
    def read(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The same in the newer form, with texts alone. Raises PydanticCustomError for what is no text."""
        fields = super().read(body)
        if "audio" in fields:
            raise unreadable("audio", "sound")
        if isinstance(fields.get("content"), list):
            fields["content"] = _texts(fields["content"])
        if "content" not in fields and isinstance(fields.get("refusal"), str):
            fields["content"] = fields["refusal"]
        if fields.get("tool_calls") == []:
            del fields["tool_calls"]
        call = fields.get("function_call")
        if isinstance(call, dict) and "tool_calls" not in fields:
            fields["tool_calls"] = [{"id": _older_id(call.get("name")), "function": call}]
        if fields.get("role") == "function":
            fields |= {"role": "tool", "tool_call_id": _older_id(fields.get("name"))}
        return fields

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and self.role not in ("assistant", "tool"):
            raise ValueError("content: missing; only an assistant's or a tool's message may have none")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls: they belong to the assistant's messages")
        return self

    @property
    def text(self) -> str | None:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content


def _older_id(name: Any) -> str:
    """What joins a call of the older form, which has no id, to its result: the function's name."""
    return f"call_{name}"


def _texts(parts: list[Any]) -> list[Any]:
    if len(parts) > MAX_CONTENT_PARTS:
        raise ValueError(f"content: at most {MAX_CONTENT_PARTS} parts")
    found: list[Any] = []
    for place, part in enumerate(parts):
        if isinstance(part, str):
            found.append({"text": part})
            continue
        kind = part.get("type") or "text" if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise ValueError(f"content.{place}: must be a text, or an object with a type")  # noqa: TRY004  pydantic's
        if kind in _TEXTS:
            if _TEXTS[kind] not in part:
                raise ValueError(f"content.{place}.{_TEXTS[kind]}: required, but missing")
            text = part[_TEXTS[kind]]
            found.append({"text": "" if text is None else text})
        elif kind not in _THOUGHTS:
            raise unreadable(f"content.{place}", _KINDS.get(kind, f"parts of the type {kind[:40]}"))
    return found
