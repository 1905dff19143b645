"""From a conversation to the one text that the model was trained on, by the template in its file."""

from __future__ import annotations

import json
import logging
import re
import secrets
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatMessage, Turn

from .sandbox import Exceeded, Sandbox, bounded

log = logging.getLogger(__name__)

_PROBE = "bc1f77a9"
_LONGEST_FORM = 256
_WIDTH = re.compile(r"[0-9]{2}")


class _Refused(Exception):
    """The template itself says that it cannot render these messages."""


class ChatTemplate:
    """A compiled template. It comes with the model, from outside, and so runs in a sandbox.

    `source` is its text, None where the model has none. `scale` is how many times the usual memory it may take, as
    the conversations may be that many times as long.
    """

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str, scale: int = 1) -> None:
        self.source = source
        self._scale = scale
        self._texts = {"bos_token": bos_text, "eos_token": eos_text}
        self._template: jinja2.Template | None = None
        self._missing = "the model's file has no chat template"
        if source is not None:
            try:
                self._template = Sandbox().compiled(source)
            except (jinja2.TemplateError, RecursionError, OverflowError, Exceeded) as error:
                log.warning("the chat template in the model's file is wrong: %s", error)
                self._missing = f"the chat template in the model's file is wrong: {_reason(error)}"
        self._wants_parts = self._template is not None and self._loses_text(self._template)

    def render(self, messages: list[ChatMessage], tools: list[dict[str, Any]] | None = None, turn: Turn = "new") -> str:
        """The text of `messages`, ready for the assistant's answer; `tools` are in OpenAI's shape.

        A turn that is continued ends where the last message's content does. Raises BadRequest where that cannot be.
        """
        if self._template is None:
            raise BadRequest(
                f"messages: {self._missing}; use POST /v1/completions, or another file of the model",
                code="no_chat_template",
            )
        try:
            if turn == "continued":
                return self._continued(self._template, messages, tools or None)
            return self._run(self._template, self._all_as_wanted(messages), tools or None, begun=turn == "new")
        except _Refused as error:
            raise BadRequest(f"messages: the model's chat template refuses them: {error}") from None
        # A template can fail in any way that Python can.
        except Exception as error:
            log.info("the chat template fails", exc_info=True)
            raise BadRequest(f"messages: the model's chat template fails with them: {_reason(error)}") from None

    def _continued(
        self, template: jinja2.Template, messages: list[ChatMessage], tools: list[dict[str, Any]] | None
    ) -> str:
        *before, last = messages
        text = last.text or ""
        # Templates trim a content and put more behind it. A word that nobody can have written shows where it ends.
        mark = f"{_PROBE}{secrets.token_hex(8)}"
        marked = last.model_copy(update={"content": text + mark})
        try:
            found, known, _ = self._run(template, self._all_as_wanted([*before, marked]), tools).rpartition(mark)
        except Exception:
            # Some insist that the user speaks last.
            known = found = ""
        if known:
            return found
        return self._run(template, self._all_as_wanted(before), tools) + text

    def _all_as_wanted(self, messages: list[ChatMessage]) -> list[dict[str, Any]]:
        return [self._as_template_wants(message) for message in messages]

    def _run(
        self,
        template: jinja2.Template,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        begun: bool = True,
    ) -> str:
        with bounded(self._scale):
            return template.render(
                messages=messages,
                add_generation_prompt=begun,
                tools=tools,
                raise_exception=_refuse,
                strftime_now=_now,
                **self._texts,
            )

    def _loses_text(self, template: jinja2.Template) -> bool:
        """Whether the template prints a content only where it is a list of parts, as those that see pictures may."""

        def shows(content: Any) -> bool:
            try:
                return _PROBE in self._run(template, [{"role": "user", "content": content}])
            except Exception:
                return False

        return not shows(_PROBE) and shows([{"type": "text", "text": _PROBE}])

    def _as_template_wants(self, message: ChatMessage) -> dict[str, Any]:
        # OpenAI renamed "system" to "developer"; templates know the old name.
        wanted: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
        # Where there is none, many templates would fail, or write "None".
        text = message.text or ""
        wanted["content"] = [{"type": "text", "text": text}] if self._wants_parts and text else text
        # Templates ask whether these are there at all.
        if message.name is not None:
            wanted["name"] = message.name
        if message.tool_call_id is not None:
            wanted["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            wanted["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
                }
                for call in message.tool_calls
            ]
        return wanted


class _Arguments(dict[str, Any]):
    """The arguments of a call: an object for templates that write it as JSON, and JSON for those that print it."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, other: object) -> str:
        return str(self) + str(other)

    def __radd__(self, other: object) -> str:
        return str(other) + str(self)


def _arguments(text: str) -> Any:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return _Arguments(found) if isinstance(found, dict) else found


def _reason(error: Exception) -> str:
    """What is wrong with a template, for who has not written it; the log has the error itself."""
    match error:
        case Exceeded() | jinja2.TemplateSyntaxError():
            return str(error)[:500]
        case jinja2.UndefinedError():
            return "it reads what is not there"
        case jinja2.exceptions.SecurityError():
            return "it does what is not for templates"
        case OverflowError():
            return "a number or a list becomes too large"
        case RecursionError():
            return "it calls itself without end"
        case _:
            return "it computes with what it cannot"


def _refuse(reason: object) -> NoReturn:
    raise _Refused(str(reason)[:500])


def _now(form: str) -> str:
    # The C library takes widths: a few characters could ask for a text of any length.
    if len(form) > _LONGEST_FORM or _WIDTH.search(form):
        raise Exceeded("a date is formatted too wide")
    return datetime.now().astimezone().strftime(form)
