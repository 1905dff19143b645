"""From a conversation to the one text that the model was trained on, by the template in its file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatMessage

# What one rendering may take, and how long a text that it puts together may be.
CPU_SECONDS = 5.0
MAX_TEXT = 16 * 1024 * 1024
_INTEGERS = 2**64
_PROBE = "bc1f77a9"


class _GenerationTag(jinja2.ext.Extension):
    """Templates made for training mark the assistant's part with this tag; for us it means nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own interface

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refused(Exception):
    """The template itself says that it cannot render these messages."""


_deadline: ContextVar[float] = ContextVar("deadline")


def _still_in_time() -> None:
    if time.thread_time() > _deadline.get():
        raise TimeoutError(f"it takes more than {CPU_SECONDS:g} seconds of computing")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _still_in_time()
        yield item


def _joined(texts: list[Any]) -> Any:
    if sum(len(text) for text in texts if isinstance(text, str)) > MAX_TEXT:
        raise OverflowError("a text becomes too long")
    return "".join(map(str, texts))


class _LoopsCounted(jinja2.visitor.NodeTransformer):
    """Puts our own functions where a template loops and where it joins texts."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802  jinja2's own interface
        self.generic_visit(node)
        node.iter = jinja2.nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        texts = jinja2.nodes.List(node.nodes, lineno=node.lineno)
        return jinja2.nodes.Filter(texts, "_joined", [], [], None, None, lineno=node.lineno)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, which keeps a template from Python, and limits to the time and the memory that it takes."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
        self.filters |= {"tojson": _to_json, "_counted": _counted, "_joined": _joined}

    def compiled(self, source: str) -> jinja2.Template:
        """The template of `source`. Raises jinja2.TemplateError."""
        return self.from_string(_LoopsCounted().visit(self.parse(source)))

    def call(self, context: Any, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what a template calls: a macro may call itself without end, and a loop may be called as well."""
        _still_in_time()
        if isinstance(obj, jinja2.runtime.LoopContext):
            arguments = (_counted(arguments[0]), *arguments[1:])
        return super().call(context, obj, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute what needs a limit, as a few characters may ask for a number that fills the memory."""
        if operator == "**":
            raise OverflowError("powers are not computed")
        sizes = [len(one) if hasattr(one, "__len__") else one for one in (left, right)]
        if all(isinstance(size, int) for size in sizes):
            size = sizes[0] * sizes[1] if operator == "*" else sizes[0] + sizes[1]
            if abs(size) > (_INTEGERS if isinstance(left, int) and isinstance(right, int) else MAX_TEXT):
                raise OverflowError("a text or a number becomes too large")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled template. It comes with the model, from outside, and so runs in a sandbox.

    `source` is its text, None where the model has none.
    """

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str) -> None:
        self.source = source
        self._texts = {"bos_token": bos_text, "eos_token": eos_text}
        self._template: jinja2.Template | None = None
        self._missing = "the model's file has no chat template"
        if source is not None:
            try:
                self._template = _Sandbox().compiled(source)
            except (jinja2.TemplateError, RecursionError) as error:
                self._missing = f"the chat template in the model's file is wrong: {str(error)[:500]}"
        self._wants_parts = self._template is not None and self._loses_text(self._template)

    def render(self, messages: list[ChatMessage], tools: list[dict[str, Any]] | None = None) -> str:
        """The text of `messages`, ready for the assistant's answer; `tools` are in OpenAI's shape.

        Raises BadRequest where that cannot be.
        """
        if self._template is None:
            raise BadRequest(
                f"messages: {self._missing}; use POST /v1/completions, or another file of the model",
                code="no_chat_template",
            )
        try:
            return self._run(
                self._template,
                [self._as_template_wants(message) for message in messages],
                tools or None,
            )
        except _Refused as error:
            raise BadRequest(f"messages: the model's chat template refuses them: {error}") from None
        # A template can fail in any way that Python can.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:500]
            raise BadRequest(f"messages: the model's chat template fails with them: {reason}") from None

    def _run(
        self, template: jinja2.Template, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> str:
        _deadline.set(time.thread_time() + CPU_SECONDS)
        return template.render(
            messages=messages,
            add_generation_prompt=True,
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
        return _to_json(self)

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


def _refuse(reason: object) -> NoReturn:
    raise _Refused(str(reason)[:500])


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)
