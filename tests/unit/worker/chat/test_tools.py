"""Tools: what the model is told of them, and what it may write."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from llama_orch.contract.errors import BadRequest
from llama_orch.worker.chat import tools
from llama_orch.worker.chat.tool_calls import Call, CallFormat
from llama_orch.worker.chat.tools import ToolPlan, format_of
from llama_orch.worker.generation import Constraint
from llama_orch.worker.grammar import gbnf
from llama_orch.worker.grammar.constraint import grammar_of
from tests.unit.worker.grammars import accepts
from tests.unit.worker.tool_families import (
    CALLED,
    CLOCK,
    GOOD,
    HERMES,
    LLAMA3,
    MISTRAL_LIST,
    MISTRAL_NAMED,
    NO_SYSTEM,
    PLAIN,
    TALK,
    TEMPLATES,
    WEATHER,
    both,
    plan,
    rendered,
    written,
)

# --- what the model is told


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (HERMES, tools.HERMES),
        ("{{ tools }}<tool_call>\n{'name': x, \"arguments\"", tools.IN_WORDS),
        ('{% if tools %}{{ "<tool_call>\n" }}\n{{- \'{"name": <name>, "arguments": <a>}\' }}', tools.HERMES),
        ("{{ tools }}<tool_call>\n<function=name>\n<parameter=x>", tools.IN_WORDS),
        ("{{ tools }}<tool_call>name\n<arg_key>x</arg_key>", tools.IN_WORDS),
        (LLAMA3, tools.LLAMA3),
        (MISTRAL_LIST, tools.MISTRAL_LIST),
        (MISTRAL_NAMED, tools.MISTRAL_NAMED),
        (PLAIN, tools.IN_WORDS),
        (None, tools.IN_WORDS),
    ],
)
def test_a_template_shows_how_its_model_calls(source: str | None, expected: CallFormat):
    assert format_of(source) is expected


def test_a_conversation_with_tools_as_hermes_has_it():
    text = rendered(HERMES, plan(HERMES, TALK))
    described = {"type": "function", "function": WEATHER}
    assert json.dumps(described, ensure_ascii=False) in text
    assert '{"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}' in text
    assert text.endswith(
        "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_conversation_with_tools_as_llama_3_has_it():
    text = rendered(LLAMA3, plan(LLAMA3, TALK))
    assert '"description": "Tells the \\"weather\\"."' in text
    assert text.endswith(
        '\n\n{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"rain"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_mistral_gets_ids_of_nine_letters_that_still_belong_together():
    text = rendered(MISTRAL_LIST, plan(MISTRAL_LIST, TALK))
    call, result = re.findall(r'id": "([A-Za-z0-9]{9})"', text)
    assert call == result
    assert '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}, "id": "' in text
    short = [TALK[1] | {"tool_calls": [{"id": "abcdef123", "function": CALLED}]}]
    assert '"id": "abcdef123"' in rendered(MISTRAL_LIST, plan(MISTRAL_LIST, short))
    assert '[TOOL_CALLS]get_weather[ARGS]{"city": "Köln", "days": 2}' in rendered(
        MISTRAL_NAMED, plan(MISTRAL_NAMED, TALK)
    )


def test_a_model_that_knows_no_tools_is_told_in_words():
    made = plan(PLAIN, [*TALK, TALK[2], {"role": "assistant", "content": "It rains."}])
    text = rendered(PLAIN, made)
    assert made.tools is None and not made.render_special
    assert text.startswith("<system>These functions") and json.dumps(WEATHER, ensure_ascii=False) in text
    assert "several" in text and "in plain words" in text
    assert text.endswith(
        "</system><user>Weather?</user>"
        '<assistant>{"tool_call": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}}</assistant>'
        '<user>{"tool_result": {"name": "get_weather", "content": "rain"}}\n'
        '{"tool_result": {"name": "get_weather", "content": "rain"}}</user>'
        "<assistant>It rains.</assistant><assistant>"
    )


def test_what_the_words_say_follows_the_request():
    text = rendered(PLAIN, plan(PLAIN, tool_choice="required", parallel_tool_calls=False))
    assert "several" not in text and "must be such a call" in text
    system = [{"role": "developer", "content": "Be brief."}, *TALK[:1]]
    assert rendered(PLAIN, plan(PLAIN, system)).startswith("<system>Be brief.\n\nThese functions")
    assert rendered(NO_SYSTEM, plan(NO_SYSTEM)).startswith("<user>Weather?\n\nThese functions")


def test_without_tools_a_conversation_stays_as_it_is():
    for source in TEMPLATES.values():
        for made in (plan(source, tools=None), plan(source, tool_choice="none")):
            assert (made.tools, made.constraint, made.reader()) == (None, None, None)
            assert made.messages[0].text == "Weather?" and len(made.messages) == 1
    assert '"tool_result"' in rendered(PLAIN, plan(PLAIN, TALK, tools=None))


def test_a_schema_that_cannot_be_held_names_its_function():
    body = [{"type": "function", "function": one} for one in (CLOCK, {"name": "f", "parameters": {"$ref": "#/x"}})]
    with pytest.raises(BadRequest, match=r"^tools\.1\.function\.parameters: ") as caught:
        plan(HERMES, tools=body)
    assert caught.value.error_code == "schema_unsupported"


# --- what it may write

BAD = ['{"city": "Köln", "days": 9}', "{}", '{"city": 5}', '{"town": "x"}']


def allowed(made: ToolPlan, text: str) -> bool:
    """Whether the answer is held to be this; what comes before a word that the grammar waits for is free."""
    assert made.constraint is not None
    gbnf.check(made.constraint.grammar)
    if not made.constraint.after:
        return accepts(made.constraint.grammar, text)
    word = next(word for word in made.constraint.after if word in text)
    return accepts(made.constraint.grammar, text.split(word, 1)[1])


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_is_held_to_its_function(name: str, choice: Any):
    made = plan(TEMPLATES[name], tool_choice=choice)
    assert made.constraint is not None and bool(made.constraint.after) == (choice == "auto")
    assert allowed(made, written(name))
    if name != "llama3" or choice != "auto":
        # After a word of Llama 3's the grammar knows not which function was named; see below.
        for arguments in BAD:
            assert not allowed(made, written(name, arguments=arguments)), arguments
        assert not allowed(made, written(name, "clock", GOOD))
        assert not allowed(made, written(name, "get_weather2"))
        assert allowed(made, written(name, "clock", "{}")) == isinstance(choice, str)
    assert not allowed(made, written(name) + " and more")


def test_a_bare_call_is_held_to_one_of_the_functions_once_it_names_one():
    made = plan(LLAMA3)
    assert made.constraint is not None
    assert '{"name": "get_weather"' in made.constraint.after and '{"name":"clock"' in made.constraint.after
    assert allowed(made, written("llama3", "clock", "{}"))
    assert not allowed(made, written("llama3", arguments='{"city": "x", "days": 9}'))


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_several_calls_are_allowed_where_they_are_wanted(name: str, choice: str):
    # Llama 3's models call one function at a time.
    assert allowed(plan(TEMPLATES[name], tool_choice=choice), both(name)) == (name != "llama3")
    assert not allowed(plan(TEMPLATES[name], tool_choice=choice, parallel_tool_calls=False), both(name))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_function_that_is_named_is_called_once(name: str):
    made = plan(TEMPLATES[name], tool_choice={"type": "function", "function": {"name": "get_weather"}})
    assert allowed(made, written(name))
    twice = both(name).replace('"clock"', '"get_weather"').replace("clock[", "get_weather[").replace("{}", GOOD)
    assert not allowed(made, twice) and not allowed(made, both(name))


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_only_some_of_the_functions_may_be_called(name: str, choice: str):
    tools = [{"type": "function", "function": {"name": "clock"}}]
    some = {"type": "allowed_tools", "allowed_tools": {"mode": choice, "tools": tools}}
    made = plan(TEMPLATES[name], tool_choice=some)
    assert allowed(made, written(name, "clock", "{}"))
    if name != "llama3" or choice == "required":
        assert not allowed(made, written(name))


ANSWER = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]}


def with_answer(name: str, **more: Any) -> ToolPlan:
    grammar = grammar_of(ANSWER, "answer")
    return plan(TEMPLATES[name], answer=Constraint(grammar), **more)


@pytest.mark.parametrize("name", TEMPLATES)
def test_with_a_format_the_answer_is_calls_or_keeps_to_it(name: str):
    made = with_answer(name)
    assert made.constraint is not None and made.constraint.after == ()
    assert allowed(made, written(name)) and allowed(made, '{"rain": true}')
    assert allowed(made, both(name)) == (name != "llama3")
    for text in ("It rains.", '{"rain": 1}', '{"rain": true} ' + written(name), written(name, arguments="{}")):
        assert not allowed(made, text), text
    # A call that must be leaves nothing else.
    for must in ("required", {"type": "function", "function": {"name": "clock"}}):
        made = with_answer(name, tool_choice=must)
        assert allowed(made, written(name, "clock", "{}")) and not allowed(made, '{"rain": true}')
    assert with_answer(name, tool_choice="none").constraint is None


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("function", ["server.tool", "get weather", "größe", "a/b:c"])
def test_functions_of_any_name_are_called_and_read(name: str, function: str):
    tools = [{"type": "function", "function": {**WEATHER, "name": function}}]
    for choice in ("auto", "required"):
        made = plan(TEMPLATES[name], tools=tools, tool_choice=choice)
        assert allowed(made, written(name, function))
        reader = made.reader()
        assert reader is not None
        deltas = [*reader.feed(written(name, function)), *reader.finish()]
        assert [delta.name for delta in deltas if isinstance(delta, Call) and delta.name] == [function]


def test_a_pattern_that_cannot_be_held_takes_no_other_tool_with_it():
    def tools(strict: bool | None) -> list[dict[str, Any]]:
        properties = {"key": {"type": "string", "pattern": r"^(?!x)\p{L}+$"}, "days": {"type": "integer"}}
        parameters = {"type": "object", "properties": properties, "required": ["key", "days"]}
        odd = {"name": "odd", "parameters": parameters, "strict": strict}
        return [{"type": "function", "function": one} for one in (WEATHER, odd)]

    for strict in (None, False):
        made = plan(HERMES, tools=tools(strict), tool_choice="required")
        assert allowed(made, written("hermes")) and allowed(made, written("hermes", "odd", '{"key": "x", "days": 1}'))
        assert not allowed(made, written("hermes", "odd", '{"key": "x", "days": "1"}'))
    with pytest.raises(BadRequest, match=r"^tools\.1\.function\.parameters: .*pattern") as caught:
        plan(HERMES, tools=tools(True))
    assert caught.value.error_code == "schema_unsupported"


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_no_answer_where_a_call_is_required(name: str):
    made = plan(TEMPLATES[name], tool_choice="required")
    assert not allowed(made, "Hello") and not allowed(made, "") and not allowed(made, " " + written(name))
