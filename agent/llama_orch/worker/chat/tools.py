"""Tools: how a model is told of them, and how its answer is held to their schemas.

Each family of models writes a call in a way of its own, which its chat template shows. A model whose template shows
none that is known here is told of its tools in our own words.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from llama_orch.contract.inference import ChatMessage, ChatRequest

from ..generation import Constraint
from ..grammar import gbnf, json_schema
from ..grammar.constraint import SchemaToGrammar, grammar_of
from . import tool_messages
from .templates import ChatTemplate
from .tool_calls import AnswerReader, Call, CallFormat, Content, Delta

__all__ = ["AnswerReader", "Call", "Content", "Delta", "ToolPlan", "format_of", "plan_tools"]

# A model that has begun to repeat itself would go on calling until its limit.
MAX_CALLS = 32

HERMES = CallFormat(openings=("<tool_call>",), closing="</tool_call>")
LLAMA3 = CallFormat(key="parameters")
MISTRAL_LIST = CallFormat("list", openings=("[TOOL_CALLS]",))
MISTRAL_NAMED = CallFormat("named", openings=("[TOOL_CALLS]",))
IN_WORDS = CallFormat(openings=('{"tool_call":', '{ "tool_call":', '{\n"tool_call":', '{\n  "tool_call":'), closing="}")

# Other families put something else between the same tags.
_HERMES_CALL = re.compile(r"""<tool_call>(?:\\n|[\s'{}~+-]|\\?"(?!name|arguments))*+\\?"(?:name|arguments)""")


def format_of(template: str | None) -> CallFormat:
    """The format of calls that a chat template's source shows."""
    if template is None or "tools" not in template:
        return IN_WORDS
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL_LIST
    if _HERMES_CALL.search(template):
        return HERMES
    if "<|start_header_id|>" in template and '{"name": "' in template and '"parameters": ' in template:
        return LLAMA3
    return IN_WORDS


@dataclass(frozen=True)
class ToolPlan:
    """What a request's tools ask of its prompt and of its answer.

    `messages` and `tools` are for the template. `render_special` says that the engine must print tokens that mark
    something, as a call may begin with one.
    """

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    constraint: Constraint | None = None
    render_special: bool = False
    format: CallFormat | None = None
    names: frozenset[str] = frozenset()
    whole: bool = True

    def reader(self) -> AnswerReader | None:
        """What reads one answer; None where it is text and nothing else."""
        return None if self.format is None else AnswerReader(self.format, self.names, whole=self.whole)


def plan_tools(
    template: ChatTemplate,
    body: ChatRequest,
    answer: Constraint | None = None,
    schema_to_grammar: SchemaToGrammar | None = None,
) -> ToolPlan:
    """How to go about a request's tools; `answer` is what holds an answer without calls, where something does.

    Raises BadRequest where a function's schema cannot be held to.
    """
    form = format_of(template.source)
    tools = [] if body.tool_choice == "none" else body.tools or []
    # Llama 3's template refuses several calls in one message, so its models never saw any.
    several = not body.calls_once and form is not LLAMA3
    must = body.must_call
    messages = body.messages
    if form is IN_WORDS:
        messages = tool_messages.in_words(messages, tools, template.source or "", several=several, must=must)
    elif form in (MISTRAL_LIST, MISTRAL_NAMED):
        messages = tool_messages.with_short_ids(messages)
    if not tools:
        return ToolPlan(messages)
    may = set(body.callable_names)
    arguments: dict[str, str] = {}
    for number, function in enumerate(tool.function for tool in tools):
        if function.name in may:
            schema = function.parameters or tool_messages.NO_PARAMETERS
            field = f"tools.{number}.function.parameters"
            convert = schema_to_grammar or json_schema.converter(strict=function.strict)
            arguments[function.name] = grammar_of(schema, field, convert)
    return ToolPlan(
        messages=messages,
        tools=None if form is IN_WORDS else [tool_messages.as_json(tool) for tool in tools],
        constraint=_constraint(form, arguments, None if must else answer, several=several, must=must),
        render_special=form is not IN_WORDS,
        format=form,
        names=frozenset(arguments),
        # A bare call may begin in ways that nothing holds to the grammar: it is shown when it has proved to be one.
        whole=not body.stream or (form.bare and not must),
    )


def _constraint(
    form: CallFormat, arguments: dict[str, str], answer: Constraint | None, *, several: bool, must: bool
) -> Constraint:
    """Holds calls to the functions' names and to grammars of their arguments.

    From the first character where there must be one, or where an answer without one is held to a shape as well;
    otherwise from where one has begun.
    """
    held = must or answer is not None
    rules: list[str] = [f"ws ::= {json_schema.SPACE}"]
    calls: list[str] = []
    begun: list[str] = []
    for number, (name, grammar) in enumerate(arguments.items()):
        rules.append(gbnf.prefixed(grammar, f"f{number}-"))
        head, middle, tail = _around(form, name)
        calls.append(f"{head} {middle} f{number}-root {tail}")
        begun.append(f"{middle} f{number}-root {tail}")
    if form.bare and not held:
        # The words name the function; which of them has come the grammar cannot know, and allows any one's arguments.
        words = tuple(f'{{"name":{space}"{name}"' for name in arguments for space in (" ", ""))
        return Constraint("\n".join([*rules, f"root ::= {' | '.join(begun)}"]), after=words)
    opening = "" if form.bare else f"{gbnf.literal(form.openings[0])} ws"
    more = f"more{{0,{MAX_CALLS - 1 if several else 0}}}"
    rules.append(f"call ::= {' | '.join(calls)}")
    if form.layout == "list":
        rules += [f'all ::= "[" ws call {more} ws "]"', 'more ::= "," ws call']
    else:
        closing = f"ws {gbnf.literal(form.closing)}" if form.closing else ""
        rules += [f"all ::= one {more}", f"one ::= call {closing}", f"more ::= ws {opening} one"]
    rules.append(f"calls ::= {opening if held else 'ws'} all")
    if answer is None:
        rules.append("root ::= calls")
    else:
        rules += [gbnf.prefixed(answer.grammar, "answer-"), "root ::= calls | answer-root"]
    return Constraint("\n".join(rules), after=() if held else form.openings)


def _around(form: CallFormat, name: str) -> tuple[str, str, str]:
    """What stands around a function's name, between it and its arguments, and behind them."""
    if form.layout == "named":
        return gbnf.literal(f"{name}[ARGS]"), "", ""
    head = " ws ".join(['"{"', gbnf.literal('"name":'), gbnf.literal(json.dumps(name, ensure_ascii=False))])
    middle = " ws ".join(['","', gbnf.literal(f"{json.dumps(form.key)}:"), ""])
    # Mistral's older models were trained to end a call with an id.
    id_ = r'("," ws "\"id\":" ws "\"" [a-zA-Z0-9]{9} "\"")? ' if form.layout == "list" else ""
    return head, middle, f'{id_}ws "}}"'
