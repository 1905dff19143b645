"""Requests of OpenAI's shape, as clients really write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import ValidationError

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatMessage, ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest
from llama_orch.contract.openai import fields as openai_fields
from llama_orch.contract.openai.request import MAX_PARTS, OpenAIRequest
from llama_orch.web.errors import from_validation
from tests.unit.contract.openai_table import REQUESTS, harmful, others, table

DOCS = Path(__file__).parents[3] / "docs" / "api.md"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
LEAST: dict[type[OpenAIRequest], dict[str, Any]] = {
    ChatRequest: ASK,
    CompletionRequest: {"prompt": "A"},
    EmbeddingRequest: {"input": "A"},
    TokenizeRequest: {"prompt": "A"},
}
MODELS = list(LEAST)
TOOL = {"type": "function", "function": {"name": "f"}}


def read(model: type[OpenAIRequest], /, **fields: Any) -> Any:
    return model.model_validate_json(json.dumps({**LEAST[model], **fields}))


def chat(**fields: Any) -> ChatRequest:
    return read(ChatRequest, **fields)


def refused(model: type[OpenAIRequest], /, **fields: Any) -> BadRequest:
    with pytest.raises(ValidationError) as error:
        read(model, **fields)
    return from_validation(error.value)


# --- fields


def test_the_table_in_the_docs_is_what_the_code_does():
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    for expected in (table(), others()):
        begin = lines.index(expected[0])
        assert lines[begin : begin + len(expected) + 1] == [*expected, ""]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_table_has_each_field_of_openais_own_client(name: str):
    model, known = REQUESTS[name]
    assert known <= model.model_fields.keys() | model.RULES.keys()
    assert not model.model_fields.keys() & model.RULES.keys()


@pytest.mark.parametrize("model", [model for model, _ in REQUESTS.values()])
def test_what_is_passed_over_changes_nothing(model: type[OpenAIRequest]):
    plain = read(model)
    for field, rule in model.RULES.items():
        if not rule.reason:
            for value in ("x", 1, True, {"a": "b"}, ["a"], None):
                assert read(model, **{field: value}) == plain
    assert read(model, colour=1, **{"extra field": {"deep": [None]}}) == plain


@pytest.mark.parametrize("model", [model for model, _ in REQUESTS.values()])
def test_what_is_refused_is_refused_by_name_and_a_null_asks_for_nothing(model: type[OpenAIRequest]):
    for field, value in harmful(model.RULES):
        error = refused(model, **{field: value})
        assert (error.status, error.error_code, error.param) == (400, "unsupported_parameter", field)
        assert model.RULES[field].reason in error.message
        assert read(model, **{field: None}) == read(model)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ChatRequest, {"modalities": ["text"]}),
        (ChatRequest, {"modalities": []}),
        (ChatRequest, {"functions": [], "function_call": "auto"}),
        (ChatRequest, {"function_call": "none"}),
        (
            ChatRequest,
            {"chat_template_kwargs": {}, "mirostat": 0, "typical_p": 1.0, "n_predict": -1, "top_n_sigma": -1},
        ),
        (CompletionRequest, {"suffix": ""}),
        (CompletionRequest, {"best_of": 1}),
    ],
)
def test_what_asks_for_nothing_is_passed_over(model: type[OpenAIRequest], fields: dict[str, Any]):
    assert read(model, **fields) == read(model)


def test_as_many_best_answers_as_wanted_are_all_of_them():
    assert read(CompletionRequest, n=3, best_of=3).n == 3
    assert refused(CompletionRequest, n=3, best_of=5).param == "best_of"
    assert refused(ChatRequest, modalities=["text", "audio"]).param == "modalities"


@pytest.mark.parametrize("model", MODELS)
def test_a_null_is_the_default(model: type[OpenAIRequest]):
    plain = read(model)
    for field, known in model.model_fields.items():
        if not known.is_required() and field not in LEAST[model]:
            assert read(model, **{field: None}) == plain, field
    if model is ChatRequest:
        assert chat(stream_options={"include_usage": None, "include_obfuscation": None}).wants_usage is False
        assert chat(response_format={"type": "json_object", "json_schema": None}) == chat(
            response_format={"type": "json_object"}
        )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 100.0}, {"max_tokens": 100}),
        ({"max_tokens": -1}, {"max_tokens": None}),
        ({"max_tokens": 10**12}, {"max_tokens": 1_048_576}),
        ({"n": 2.0}, {"n": 2}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"top_p": 0}, {"top_p": 0.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 40.0}, {"top_k": 40}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": 42.0}, {"seed": 42}),
        ({"seed": 2**32 - 2}, {"seed": 2**32 - 2}),
        ({"seed": 2**63 - 1}, {"seed": (2**63 - 1) % (2**32 - 1)}),
        ({"seed": -5}, {"seed": 2**32 - 6}),
        ({"stop": ""}, {"stops": []}),
        ({"stop": ["", "x", None]}, {"stops": ["x"]}),
        ({"stop": []}, {"stops": []}),
        ({"logit_bias": {"5": 1}}, {"logit_bias": {"5": 1.0}}),
        ({"logit_bias": {}}, {"logit_bias": {}}),
        ({"model": ""}, {"model": None}),
    ],
)
def test_numbers_and_texts_are_taken_as_clients_write_them(fields: dict[str, Any], expected: dict[str, Any]):
    for model in (ChatRequest, CompletionRequest):
        body = read(model, **fields)
        assert {name: getattr(body, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1), ("temperature", "hot"), ("top_p", 1.1), ("top_p", -0.1), ("top_k", -2),
        ("max_tokens", -2), ("max_tokens", 1.5), ("max_tokens", True), ("n", 0), ("n", 129), ("n", 1.5),
        ("seed", 1.5), ("seed", True),
        ("stop", 5), ("stream", "yes"), ("logit_bias", {"x": 1}), ("logit_bias", {"5": 101}),
        ("response_format", {"type": "xml"}), ("response_format", {"type": "json_schema"}), ("stop", ["x"] * 65),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_still_named(field: str, value: Any):
    for model in (ChatRequest, CompletionRequest):
        error = refused(model, **{field: value})
        assert error.error_code == "invalid_request" and (error.param or "").startswith(field)


def test_a_schema_may_stand_where_other_servers_have_it():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    expected = chat(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    for wanted in (
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "schema": schema},
        {"type": "json_schema", "json_schema": {"name": None, "schema": schema, "strict": None, "x": 1}},
    ):
        assert chat(response_format=wanted) == expected
    named = {"type": "json_schema", "json_schema": {"name": "a name. of its own", "schema": schema}}
    assert chat(response_format=named).response_format is not None


def test_a_schema_of_more_parts_than_any_grammar_has_is_refused_before_it_is_read():
    large = {"enum": [{}] * (MAX_PARTS + 1)}
    error = refused(ChatRequest, response_format={"type": "json_schema", "json_schema": {"schema": large}})
    assert error.param == "response_format.json_schema.schema"
    error = refused(ChatRequest, tools=[{"function": {"name": "f", "parameters": large}}])
    assert error.param == "tools.0.function.parameters"
    call = {"function": {"name": "f", "arguments": [[]] * (MAX_PARTS + 1)}}
    error = refused(ChatRequest, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert (error.param or "").startswith("messages.0.tool_calls.0.function")
    error = refused(ChatRequest, messages=[{"role": "user", "content": [""] * 5000}])
    assert error.param == "messages.0.content"
    fits = {"enum": list(range(MAX_PARTS // 2))}
    assert chat(tools=[{"function": {"name": "f", "parameters": fits}}]).tools


def test_an_empty_prompt_is_the_beginning_of_a_text():
    assert read(CompletionRequest, prompt=None).prompts == [""] == read(CompletionRequest, prompt="").prompts


# --- messages


def messages(*sent: dict[str, Any]) -> list[ChatMessage]:
    return chat(messages=list(sent)).messages


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "Hi"},
        {
            "content": "Hi",
            "annotations": None,
            "audio": None,
            "function_call": None,
            "refusal": None,
            "tool_calls": None,
        },
        {
            "content": "Hi",
            "annotations": [],
            "tool_calls": [],
            "reasoning_content": "Hm",
            "provider_specific_fields": {},
        },
        {
            "content": "Hi",
            "reasoning": "Hm",
            "thinking_blocks": [{}],
            "id": "x",
            "cache_control": {"type": "ephemeral"},
        },
        {"content": [{"type": "text", "text": "Hi", "annotations": [], "cache_control": {"type": "ephemeral"}}]},
        {"content": [{"type": "output_text", "text": "H"}, "i"]},
        {"content": [{"type": "thinking", "thinking": "Hm"}, {"text": "Hi"}]},
        {"content": None, "refusal": "Hi"},
        {"content": [{"type": "refusal", "refusal": "Hi"}]},
    ],
)
def test_an_answer_may_be_sent_back_as_it_came(fields: dict[str, Any]):
    (message,) = messages({"role": "assistant", **fields})
    assert (message.role, message.text, message.tool_calls) == ("assistant", "Hi", None)


def test_openais_own_messages_are_taken_as_they_dump_themselves():
    for message in (
        ChatCompletionMessage.model_validate({"role": "assistant", "content": "Hi"}),
        ChatCompletionMessage.model_validate({"role": "assistant", "content": None, "tool_calls": [CALL]}),
    ):
        for dumped in (message.model_dump(), message.model_dump(exclude_none=True), message.to_dict()):
            (taken,) = messages(dumped)
            assert taken.text == message.content and len(taken.tool_calls or []) == len(message.tool_calls or [])


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {**CALL, "index": 0},
        {**CALL, "type": "functionfunction", "index": 0},
        {**CALL, "type": None, "extra_content": {"google": {}}},
        {"id": "call_1", "function": {"name": "f", "arguments": {"a": 1}}},
        {"id": "call_1", "function": {"name": "f", "arguments": '{"a": 1}', "parsed_arguments": None}},
    ],
)
def test_calls_are_taken_as_streams_and_libraries_put_them_together(call: dict[str, Any]):
    for content in ({}, {"content": None}, {"content": ""}):
        (message,) = messages({"role": "assistant", **content, "tool_calls": [call]})
        assert message.tool_calls is not None and not message.text
        (taken,) = message.tool_calls
        assert (taken.id, taken.function.name, json.loads(taken.function.arguments)) == ("call_1", "f", {"a": 1})


@pytest.mark.parametrize("name", ["server.tool", "get weather", "a/b:c", "größe", "x" * 128, "mcp::a"])
def test_functions_may_have_any_name_that_can_be_called(name: str):
    body = chat(tools=[{"type": "function", "function": {"name": name}}], tool_choice={"function": {"name": name}})
    assert body.callable_names == [name] and body.must_call and body.calls_once
    (message,) = messages({"role": "assistant", "tool_calls": [{"function": {"name": name}}]})
    assert message.tool_calls is not None and message.tool_calls[0].function.name == name


@pytest.mark.parametrize("name", ["", " a", "a ", 'a"b', "a\\b", "a\nb", "a[b", "{a}", "x" * 129])
def test_a_name_that_would_break_a_call_is_refused(name: str):
    error = refused(ChatRequest, tools=[{"type": "function", "function": {"name": name}}])
    assert error.param == "tools.0.function.name"


def test_the_older_form_of_calls_is_read_as_the_newer():
    call, result = messages(
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "7"},
    )
    assert call.tool_calls is not None and call.tool_calls[0].function.name == "f"
    assert (result.role, result.text, result.tool_call_id) == ("tool", "7", call.tool_calls[0].id)


def test_a_call_of_another_kind_of_tool_is_read_as_a_call():
    (message,) = messages(
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}]}
    )
    assert message.tool_calls is not None and message.tool_calls[0].function.arguments == '{"input": "x"}'


def test_every_role_may_have_parts_and_a_result_may_be_empty():
    part = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for role in ("system", "developer", "user", "assistant", "tool"):
        assert messages({"role": role, "content": part})[0].text == "ab"
    assert messages({"role": "tool", "tool_call_id": "x", "content": None})[0].text is None
    assert messages({"role": "user", "name": "Ann B. Smith", "content": "x"})[0].name == "Ann B. Smith"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image_url"),
        ({"type": "input_image", "image_url": "x"}, "input_image"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "input_audio"),
        ({"type": "file", "file": {"file_id": "x"}}, "file"),
        ({"type": "hologram"}, "hologram"),
    ],
)
def test_what_is_no_text_is_refused_by_name(part: dict[str, Any], said: str):
    error = refused(ChatRequest, messages=[{"role": "user", "content": [{"type": "text", "text": "Look"}, part]}])
    assert (error.error_code, error.param) == ("unsupported_content", "messages.0.content.1")
    assert said in error.message and "AAAA" not in error.message
    error = refused(ChatRequest, messages=[{"role": "assistant", "audio": {"id": "x"}}])
    assert (error.error_code, error.param) == ("unsupported_content", "messages.0.audio")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "robot", "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": [5]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": 5}]}, "messages.0.content.0"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages.0.tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages.0.tool_calls.0.function"),
        ("x", "messages.0"),
    ],
)
def test_a_message_that_says_nothing_is_named(message: Any, param: str):
    assert refused(ChatRequest, messages=[message]).param == param


# --- tools


def test_a_choice_of_tools_without_tools_asks_for_nothing():
    for tools in ([], None):
        for choice in ("auto", "none", None):
            assert not chat(tools=tools, tool_choice=choice).callable_names
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        assert refused(ChatRequest, tool_choice=choice).param == "tool_choice"


@pytest.mark.parametrize(("mode", "must"), [("auto", False), ("required", True)])
def test_some_of_the_tools_may_be_left(mode: str, must: bool):
    other = {"type": "function", "function": {"name": "g"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [other]}}
    body = chat(tools=[TOOL, other], tool_choice=allowed)
    assert (body.callable_names, body.must_call, body.calls_once) == (["g"], must, False)
    assert refused(ChatRequest, tools=[TOOL], tool_choice=allowed).param == "tool_choice"


def test_other_kinds_of_tools_are_refused_by_name():
    custom = {"type": "custom", "custom": {"name": "x"}}
    error = refused(ChatRequest, tools=[TOOL, custom])
    assert (error.error_code, error.param) == ("unsupported_parameter", "tools.1.type")
    error = refused(ChatRequest, tools=[TOOL], tool_choice=custom)
    assert (error.error_code, error.param) == ("unsupported_parameter", "tool_choice.type")


def test_tools_go_together_with_a_format():
    body = chat(tools=[{"function": {"name": "f", "strict": None, "parameters": None}}],
                response_format={"type": "json_object"})  # fmt: skip
    assert body.tools is not None and body.tools[0].function.strict is False


# --- turns


@pytest.mark.parametrize(
    ("last", "fields", "turn"),
    [
        ({"role": "user", "content": "x"}, {}, "new"),
        ({"role": "assistant", "content": "x"}, {}, "continued"),
        ({"role": "assistant", "content": "x"}, {"continue_final_message": True, "add_generation_prompt": False},
         "continued"),
        ({"role": "assistant", "content": "x"}, {"continue_final_message": False}, "new"),
        ({"role": "assistant", "content": "x"}, {"add_generation_prompt": True}, "new"),
        ({"role": "assistant", "content": "x"}, {"continue_final_message": False, "add_generation_prompt": False},
         "none"),
        ({"role": "assistant", "tool_calls": [CALL]}, {}, "new"),
        ({"role": "user", "content": "x"}, {"add_generation_prompt": False}, "none"),
    ],
)  # fmt: skip
def test_where_the_answer_begins(last: dict[str, Any], fields: dict[str, Any], turn: str):
    body = chat(messages=[{"role": "user", "content": "x"}, last], **fields)
    assert body.turn_after(body.messages) == turn


def test_a_turn_that_cannot_go_on_is_refused():
    assert refused(ChatRequest, continue_final_message=True).param == "continue_final_message"
    both = {"continue_final_message": True, "add_generation_prompt": True}
    error = refused(ChatRequest, messages=[{"role": "assistant", "content": "x"}], **both)
    assert error.param == "continue_final_message"


def test_every_rule_says_what_it_is():
    for rule in (*openai_fields.OTHERS.values(), *openai_fields.CHAT.values(), *openai_fields.COMPLETIONS.values()):
        assert bool(rule.unless) <= bool(rule.reason)
