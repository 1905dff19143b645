"""Reading calls out of answers, whole and in pieces."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_orch.worker.chat.tools import AnswerReader, Call, Content, Delta, ToolPlan
from tests.unit.worker.grammars import Grammar
from tests.unit.worker.tool_families import GOOD, HERMES, LLAMA3, TEMPLATES, WEATHER, both, plan, written


def read(made: ToolPlan | AnswerReader, pieces: list[str], *, cut: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """The content and the calls that come of an answer in pieces."""
    reader = made if isinstance(made, AnswerReader) else made.reader()
    assert reader is not None
    deltas: list[Delta] = [delta for piece in pieces for delta in reader.feed(piece)] + reader.finish(cut=cut)
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
        ("llama3", '{"name": "Bob", "parameters": {}} is my JSON'),
        ("llama3", '{"answer": 42}'),
        ("llama3", 'as in {"name": "Bob"}'),
        ("llama3", "<|python_tag|>print(1)"),
        ("mistral-list", "[TOOL_CALLS][]"),
        ("mistral-list", '[TOOL_CALLS][[{"name": "clock", "arguments": {}}]]'),
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


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_that_is_cut_off_is_told_as_far_as_it_came(stream: bool):
    """Its arguments are no JSON then, as OpenAI's are."""
    cut = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "K'
    assert read(plan(HERMES, stream=stream), [cut]) == ("", [("get_weather", '{"city": "K')])
    whole = written("hermes") + "\n"
    assert read(plan(HERMES, stream=stream), [whole + cut])[1] == [
        ("get_weather", GOOD),
        ("get_weather", '{"city": "K'),
    ]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_marks_a_call_is_never_text_wherever_the_answer_is_cut(name: str, stream: bool):
    for before in ("", "Let me see. "):
        if before and name == "llama3":
            continue
        for text in (written(name), both(name)):
            for size in range(len(text)):
                content, calls = read(plan(TEMPLATES[name], stream=stream), [before + text[:size]], cut=True)
                # One character may be the beginning of anything.
                assert content.strip() == (before + (text[:1] if size == 1 else "")).strip()
                assert all(function in ("get_weather", "clock") for function, _ in calls)


def test_json_that_is_no_call_is_text_also_where_it_is_cut():
    for text in ('{"answer": 4', '{"name": "Bob", "age": 4'):
        assert read(plan(LLAMA3), [text], cut=True) == (text, [])
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
    reader = PLANS[name, False].reader()
    assert reader is not None
    certain = reader.feed(text)
    rest = reader.finish()
    for delta in certain:
        if isinstance(delta, Call) and delta.name is None:
            json.loads(delta.arguments)
        assert isinstance(delta, Content) or delta.name in (None, "get_weather", "clock")
    if all(isinstance(delta, Content) for delta in [*certain, *rest]):
        content = "".join(delta.text for delta in [*certain, *rest] if isinstance(delta, Content))
        # What is missing is a call that had begun.
        assert text.startswith(content.rstrip()) and (content == text or text[len(content.rstrip()) :].strip())


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
    text = "<tool_call>{" * 20_000 + "]"
    assert "".join(delta.text for delta in [*reader.feed(text), *reader.finish()] if isinstance(delta, Content)) == text


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
