"""Chats: the conversation, the tools that the model may call, and what its answer is to be.

Source: OpenAI's public API reference, "Chat"; vLLM's for how a turn begins or goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from .completion import MAX_GRAMMAR, MAX_LOGPROBS, JsonSchema, Sampling
from .fields import CHAT, OTHERS, Rule, unsupported
from .message import MAX_MESSAGES, ChatMessage
from .request import Limit, OpenAIRequest, whole

MAX_TOOLS = 128

# Any name that can stand in a call without changing what the call is: no quotes, brackets and control characters.
_NO = r"\x00-\x1f\x7f\"\\\[\]{}"
ToolName = Annotated[str, StringConstraints(pattern=rf"^[^\s{_NO}]([^{_NO}]{{0,126}}[^\s{_NO}])?$")]
# How the model's turn begins: anew, in the middle of what the last message says, or not at all.
Turn = Literal["new", "continued", "none"]


class Turns(OpenAIRequest):
    """Where the answer begins; by default a last message of the assistant's is continued."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def turn_after(self, messages: list[ChatMessage]) -> Turn:
        """How the model's turn begins behind `messages`. Raises ValueError where it cannot begin so."""
        last = messages[-1]
        can = last.role == "assistant" and not last.tool_calls
        if self.continue_final_message and not can:
            raise ValueError("continue_final_message: the last message is none of the assistant's that could go on")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message: it and add_generation_prompt exclude each other")
        if can and self.continue_final_message is not False and not self.add_generation_prompt:
            return "continued"
        return "none" if self.add_generation_prompt is False else "new"


class Function(OpenAIRequest):
    """A function that the model may call; `parameters` is a JSON schema.

    Without `strict`, a pattern in it that no grammar can hold is passed over.
    """

    name: ToolName
    description: str | None = Field(default=None, max_length=MAX_GRAMMAR)
    parameters: JsonSchema | None = None
    strict: bool = False


class Tool(OpenAIRequest):
    """One tool."""

    type: Literal["function"] = "function"
    function: Function

    @classmethod
    def read(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The same. Raises PydanticCustomError where it is no function."""
        fields = super().read(body)
        _only_functions(fields)
        return fields


class NamedFunction(OpenAIRequest):
    """The function of a named tool choice."""

    name: ToolName


class NamedTool(OpenAIRequest):
    """The one tool that must be called, once."""

    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedToolList(OpenAIRequest):
    """Those of the tools that may be called, or one of which must be."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedTools(OpenAIRequest):
    """A tool choice that leaves only some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList


class ChatRequest(Turns, Sampling):
    """`POST /v1/chat/completions`."""

    RULES: ClassVar[Mapping[str, Rule]] = {**OTHERS, **CHAT}

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Limit = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, BeforeValidator(whole)] = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool = True

    @classmethod
    def read(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The same. Raises PydanticCustomError where another kind of tool is chosen than a function."""
        fields = super().read(body)
        choice = fields.get("tool_choice")
        if isinstance(choice, dict) and choice.get("type") != "allowed_tools":
            _only_functions(choice, "tool_choice.")
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs: true")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) != len(names):
            raise ValueError("tools: two functions have the same name")
        if not names and self.must_call:
            raise ValueError("tool_choice: needs tools")
        if names and not set(self.callable_names) <= set(names):
            raise ValueError("tool_choice: it names a function that is not among tools")
        self.turn_after(self.messages)
        return self

    @property
    def limit(self) -> int | None:
        """Tokens that the answer may have; the newer of OpenAI's two names wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        if isinstance(self.tool_choice, AllowedTools):
            return self.tool_choice.allowed_tools.mode == "required"
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def calls_once(self) -> bool:
        """Whether the answer may have one call at most. A function that is named is called once."""
        return isinstance(self.tool_choice, NamedTool) or not self.parallel_tool_calls

    @property
    def callable_names(self) -> list[str]:
        """The names of the functions that may be called, as the tool choice leaves them."""
        match self.tool_choice:
            case NamedTool(function=chosen):
                return [chosen.name]
            case AllowedTools(allowed_tools=allowed):
                return [tool.function.name for tool in allowed.tools]
            case "none":
                return []
            case _:
                return [tool.function.name for tool in self.tools or []]


def _only_functions(tool: Mapping[str, Any], field: str = "") -> None:
    kind = tool.get("type", "function")
    if kind != "function" and isinstance(kind, str):
        raise unsupported(f"{field}type", f"only functions are tools here, and not {kind[:40]}")
