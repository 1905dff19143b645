"""Tools: what the model is told, what it may write, and what is read from it."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatRequest
from llama_orch.worker import gbnf, tools
from llama_orch.worker.chat import ChatTemplate
from llama_orch.worker.tool_calls import AnswerReader, CallFormat
from llama_orch.worker.tools import Call, Content, Delta, ToolPlan, format_of, plan_tools

from .grammars import Grammar, accepts

# Templates as the families have them, cut down to what matters here.
HERMES = r"""
{%- if tools %}
    {{- "<|im_start|>system\n<tools>" }}
    {%- for tool in tools %}{{ "\n" ~ tool | tojson }}{% endfor %}
    {{- "\n</tools>\nCall: <tool_call>\n{\"name\": <name>, \"arguments\": <object>}\n</tool_call><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {{- "<|im_start|>user\n<tool_response>\n" + message.content + "\n</tool_response><|im_end|>\n" }}
    {%- else %}
        {{- "<|im_start|>" + message.role }}{% if message.content %}{{ "\n" + message.content }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + "}\n</tool_call>" }}
        {%- endfor %}
        {{- "<|im_end|>\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{% endif %}"""

LLAMA3 = r"""
{{- bos_token }}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- for message in messages %}
    {%- if message.role == "user" and loop.first and tools is not none %}
        {{- "<|start_header_id|>user<|end_header_id|>\n\n" }}
        {{- 'Answer with {"name": function name, "parameters": its arguments}.' }}
        {%- for tool in tools %}{{ "\n" }}{{ tool | tojson(indent=None) }}{% endfor %}
        {{- "\n" + message.content + "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception("single tool-calls only") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
        {{- '{"name": "' + call.name + '", ' }}{{ '"parameters": ' }}{{ call.arguments | tojson + "}<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" + message.content | tojson + "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\n\n" + message.content + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}"""

MISTRAL_LIST = r"""
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- if tools is not none %}{{ "[AVAILABLE_TOOLS]" + tools | tojson + "[/AVAILABLE_TOOLS]" }}{% endif %}
        {{- "[INST]" + message.content + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS][" }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception("nine letters and digits") }}{% endif %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] + ', "id": "' + call.id + '"}' }}{{ ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if message.tool_call_id | length != 9 %}{{ raise_exception("nine letters and digits") }}{% endif %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
    {%- else %}{{ message.content + eos_token }}{% endif %}
{%- endfor %}"""

MISTRAL_NAMED = r"""
{%- for message in messages %}
    {%- if message.role == "user" %}{{ "[INST]" + message.content + "[/INST]" }}
    {%- elif message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- "[TOOL_CALLS]" + call.function.name + "[ARGS]" + call.function.arguments | tojson }}
        {%- endfor %}
    {%- elif message.role == "tool" %}{{ "[TOOL_RESULTS]" + message.tool_call_id + "[TOOL_CONTENT]" + message.content }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ "[AVAILABLE_TOOLS]" + tools | tojson }}{% endif %}"""

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN

TEMPLATES = {
    "hermes": HERMES,
    "llama3": LLAMA3,
    "mistral-list": MISTRAL_LIST,
    "mistral-named": MISTRAL_NAMED,
    "in words": PLAIN,
}

WEATHER = {
    "name": "get_weather",
    "description": 'Tells the "weather".',
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city"],
    },
}
CLOCK = {"name": "clock"}
CALLED = {"name": "get_weather", "arguments": '{"city": "Köln", "days": 2}'}
TALK = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "call_0123456789", "function": CALLED}]},
    {"role": "tool", "tool_call_id": "call_0123456789", "content": "rain"},
]


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>")


def plan(source: str, messages: list[dict[str, Any]] | None = None, /, **more: Any) -> ToolPlan:
    body = {
        "messages": messages or TALK[:1],
        "tools": [{"type": "function", "function": one} for one in (WEATHER, CLOCK)],
        **more,
    }
    return plan_tools(template(source), ChatRequest.model_validate(body))


def rendered(source: str, made: ToolPlan) -> str:
    return template(source).render(made.messages, made.tools)


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

GOOD = '{"city": "Köln", "days": 2}'
BAD = ['{"city": "Köln", "days": 9}', "{}", '{"city": 5}', '{"town": "x"}']


def written(name: str, function: str = "get_weather", arguments: str = GOOD) -> str:
    """One call as the family writes it."""
    return {
        "hermes": f'<tool_call>\n{{"name": "{function}", "arguments": {arguments}}}\n</tool_call>',
        "llama3": f'{{"name": "{function}", "parameters": {arguments}}}',
        "mistral-list": f'[TOOL_CALLS][{{"name": "{function}", "arguments": {arguments}, "id": "abcdef123"}}]',
        "mistral-named": f"[TOOL_CALLS]{function}[ARGS]{arguments}",
        "in words": f'{{"tool_call": {{"name": "{function}", "arguments": {arguments}}}}}',
    }[name]


def both(name: str) -> str:
    """Two calls in one answer."""
    if name == "mistral-list":
        first = '{"name": "get_weather", "arguments": ' + GOOD + "}"
        return f'[TOOL_CALLS][{first}, {{"name": "clock", "arguments": {{}}}}]'
    return written(name) + "\n" + written(name, "clock", "{}")


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
def test_text_is_no_answer_where_a_call_is_required(name: str):
    made = plan(TEMPLATES[name], tool_choice="required")
    assert not allowed(made, "Hello") and not allowed(made, "") and not allowed(made, " " + written(name))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), st.integers(0, 2**32))
def test_whatever_the_grammar_allows_is_read_as_calls(name: str, seed: int):
    made = plan(TEMPLATES[name], tool_choice="required")
    assert made.constraint is not None
    with Grammar(made.constraint.grammar) as grammar:
        text = grammar.write(seed)
    if text is None:
        return
    content, calls = read(made, [text])
    assert content == "" and calls
    for function, arguments in calls:
        schema = WEATHER["parameters"] if function == "get_weather" else {"type": "object", "maxProperties": 0}
        jsonschema.Draft202012Validator(schema).validate(json.loads(arguments))


# --- what is read


def read(made: ToolPlan | AnswerReader, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The content and the calls that come of an answer in pieces."""
    reader = made if isinstance(made, AnswerReader) else made.reader()
    assert reader is not None
    deltas: list[Delta] = [delta for piece in pieces for delta in reader.feed(piece)] + reader.finish()
    content, calls = "", list[tuple[str, str]]()
    for delta in deltas:
        if isinstance(delta, Content):
            assert delta.text
            content += delta.text
        elif delta.name is not None:
            assert delta.index == len(calls)
            assert delta.arguments == "" and re.fullmatch("call_[A-Za-z0-9]{24}", delta.id or "")
            calls.append((delta.name, ""))
        else:
            assert delta.index == len(calls) - 1 and delta.arguments
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return content, calls


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_told_from_text(name: str, stream: bool):
    made = plan(TEMPLATES[name], stream=stream)
    one = ("get_weather", GOOD)
    assert read(made, [written(name)]) == ("", [one])
    assert read(made, ["Let me see. \n" + written(name)]) == ("Let me see.", [one])
    assert read(made, ["Let me see."]) == ("Let me see.", [])
    assert read(made, [both(name)]) == ("", [one, ("clock", "{}")])
    if name != "mistral-named":
        assert read(made, [written(name) + "\nDone."])[1] == [one]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"arguments": {"city": "Köln", "days": 2}, "name": "get_weather"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Köln\\", \\"days\\": 2}"}'),
        ("hermes", '<tool_call> {"name":"get_weather","x":{"y":1},"arguments":{"city":"Köln","days":2}} </tool_call>'),
        ("llama3", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}'),
        (
            "llama3",
            '\n{\n  "type": "function",\n  "name": "get_weather",\n  "parameters": {"city": "Köln", "days": 2}}',
        ),
        ("llama3", '{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}'),
        ("mistral-list", '[TOOL_CALLS] [{"id": "x", "name": "get_weather", "arguments": {"city": "Köln", "days": 2}}]'),
        ("mistral-list", '[TOOL_CALLS]{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}'),
        ("mistral-named", '[TOOL_CALLS] get_weather[CALL_ID]abcdef123[ARGS] {"city": "Köln", "days": 2}'),
        ("in words", '{\n  "tool_call": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n}'),
    ],
)
def test_what_models_write_a_little_differently_is_read_as_well(name: str, text: str):
    content, calls = read(plan(TEMPLATES[name]), [text])
    assert content == ""
    assert [(function, json.loads(arguments)) for function, arguments in calls] == [
        ("get_weather", {"city": "Köln", "days": 2})
    ]


def test_a_function_without_arguments_gets_none():
    for arguments in ("null", "{}"):
        text = f'<tool_call>{{"arguments": {arguments}, "name": "clock"}}</tool_call>'
        assert read(plan(HERMES), [text]) == ("", [("clock", "{}")])
    assert read(plan(HERMES), ['<tool_call>{"name": "clock"}</tool_call>']) == ("", [("clock", "{}")])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "if a <tool_call or b"),
        ("hermes", "the end: <tool_"),
        ("hermes", "<tool_call>maybe</tool_call>"),
        ("hermes", '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "clock", "arguments": {"a": ]}}'),
        ("hermes", '<tool_call>\n{"name": "clock", "arguments": {"a": tru}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "clock", "arguments": "{"}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "clock", "arguments": {"cut": "of'),
        ("hermes", "<tool_call>"),
        ("llama3", '{"name": "Bob", "parameters": {}} is my JSON'),
        ("llama3", '{"answer": 42}'),
        ("llama3", 'as in {"name": "Bob"}'),
        ("llama3", '{"name": "clock", "parameters": {"cut": '),
        ("llama3", "<|python_tag|>print(1)"),
        ("mistral-list", "[TOOL_CALLS][]"),
        ("mistral-list", '[TOOL_CALLS][[{"name": "clock", "arguments": {}}]]'),
        ("mistral-named", "[TOOL_CALLS]clock[ARGS]"),
        ("mistral-named", "[TOOL_CALLS]unknown[ARGS]{}"),
        ("mistral-named", "[TOOL_CALLS]" + "x" * 500),
        ("in words", '{"tool_call": "x"}'),
        ("in words", '{"other": 1}'),
        ("in words", " text with space around \n"),
    ],
)
def test_what_is_no_call_is_text_and_nothing_is_lost(name: str, text: str):
    assert read(plan(TEMPLATES[name]), [text]) == (text, [])


def test_a_stream_tells_a_call_as_it_comes():
    reader = plan(HERMES, stream=True).reader()
    assert reader is not None
    assert reader.feed("I look. <tool") == [Content("I look.")]
    assert reader.feed('_call>\n{"name": "get_weather", "arguments"') == []
    begin, first = reader.feed(': {"city": "K')
    assert isinstance(begin, Call) and (begin.index, begin.name, begin.arguments) == (0, "get_weather", "")
    assert first == Call(0, '{"city": "K')
    assert reader.feed('öln"}}\n') == [Call(0, 'öln"}')]
    assert reader.feed("</tool_call>") == []
    assert reader.finish() == []


def test_a_whole_answer_tells_a_call_only_when_it_is_one():
    cut = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "K'
    assert read(plan(HERMES), [cut]) == (cut, [])
    # A stream has told its beginning before it was cut off, as OpenAI's do.
    assert read(plan(HERMES, stream=True), [cut]) == ("", [("get_weather", '{"city": "K')])
    # Nothing holds a bare call to the schema before it has named its function, so it waits.
    assert read(plan(LLAMA3, stream=True), ['{"name": "Bob", "parameters": {}}'])[1] == []


PARTS = st.sampled_from(
    ["Hi", " ", "\n", "<", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[", "]", ",", "{", "}", "[ARGS]",
     '{"name": "', 'clock", "arguments": {}', 'get_weather", "parameters": {"city": "x\\"}"}', '{"tool_call":',
     "<|python_tag|>", '"', "\\", "get_weather", '{"city": "x"}', "ü"],
)  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, str]:
    """A family and something that its models may write, calls among it."""
    name = draw(st.sampled_from(sorted(TEMPLATES)))
    calls = [written(name), both(name), written(name, "clock", "{}"), written(name, "unknown"), written(name)[:-9]]
    return name, "".join(draw(st.lists(PARTS | st.sampled_from(calls), max_size=12)))


PLANS = {(name, stream): plan(TEMPLATES[name], stream=stream) for name in TEMPLATES for stream in (True, False)}


@settings(max_examples=300, deadline=None)
@given(answers(), st.booleans(), st.data())
def test_where_an_answer_is_cut_makes_no_difference(answer: tuple[str, str], stream: bool, data: st.DataObject):
    name, text = answer
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]
    made = PLANS[name, stream]
    assert read(made, pieces) == read(made, [text]) == read(made, list(text))


@settings(max_examples=200, deadline=None)
@given(answers())
def test_a_whole_answers_calls_are_right_and_the_rest_is_text(answer: tuple[str, str]):
    name, text = answer
    content, calls = read(PLANS[name, False], [text])
    for function, arguments in calls:
        assert function in ("get_weather", "clock")
        json.loads(arguments)
    if not calls:
        assert content == text


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab <>[]{}\"'\n"), max_size=40), st.booleans())
def test_no_part_of_an_opening_is_shown_before_it_is_none(text: str, stream: bool):
    shown = ""
    reader = PLANS["hermes", stream].reader()
    assert reader is not None
    for char in text + written("hermes"):
        shown += "".join(delta.text for delta in reader.feed(char) if isinstance(delta, Content))
        assert (text.rstrip() if len(shown) <= len(text) else shown).startswith(shown)
    reader.finish()


def test_a_long_answer_is_read_in_good_time():
    reader = plan(HERMES).reader()
    assert reader is not None
    text = "<tool_call>{" * 20_000
    assert "".join(delta.text for delta in [*reader.feed(text), *reader.finish()] if isinstance(delta, Content)) == text
