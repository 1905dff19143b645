"""From a conversation to the one text that the model was trained on, by the template in its file."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatMessage


class _GenerationTag(jinja2.ext.Extension):
    """Templates made for training mark the assistant's part with this tag; for us it means nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own interface

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refused(Exception):
    """The template itself says that it cannot render these messages."""


class ChatTemplate:
    """A compiled template. It comes with the model, from outside, and so runs in jinja2's sandbox."""

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str) -> None:
        self._texts = {"bos_token": bos_text, "eos_token": eos_text}
        self._template: jinja2.Template | None = None
        self._missing = "the model's file has no chat template"
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        if source is not None:
            try:
                self._template = environment.from_string(source)
            except jinja2.TemplateError as error:
                self._missing = f"the chat template in the model's file is wrong: {error}"

    def render(self, messages: list[ChatMessage]) -> str:
        """The text of `messages`, ready for the assistant's answer. Raises BadRequest where that cannot be."""
        if self._template is None:
            raise BadRequest(
                f"messages: {self._missing}; use POST /v1/completions, or another file of the model",
                code="no_chat_template",
            )
        try:
            return self._template.render(
                messages=[_as_template_wants(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                raise_exception=_refuse,
                strftime_now=_now,
                **self._texts,
            )
        except _Refused as error:
            raise BadRequest(f"messages: the model's chat template refuses them: {error}") from None
        # A template can fail in any way that Python can.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:500]
            raise BadRequest(f"messages: the model's chat template fails with them: {reason}") from None


def _as_template_wants(message: ChatMessage) -> dict[str, Any]:
    # OpenAI renamed "system" to "developer"; templates know the old name.
    role = "system" if message.role == "developer" else message.role
    plain = {"role": role, "content": message.content}
    return plain if message.name is None else {**plain, "name": message.name}


def _refuse(reason: object) -> NoReturn:
    raise _Refused(str(reason)[:500])


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)
