"""What real clients send, to real workers: their own messages sent back, prefixes, tools beside a format, nulls."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal, Optional

import aiohttp
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel

from llama_orch import demo_model
from llama_orch.demo_model import DEMO_SENTENCE, expected_completion, write_demo_model
from tests.integration.worker.test_worker_openai import client_of
from tests.support.gguf.real_model import real_model
from tests.support.worker_process import WorkerProcess, post, session_of

CHAT: Any = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20, "pattern": r"^(?!x)\p{L}+$"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": WEATHER}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
MARKUP = ("<tool_call>", "</tool_call>", '"tool_call"', '"arguments"', "<tool")
REFERENCE = "hf:org/repo@main"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def demo(folder: Path) -> Iterator[WorkerProcess]:
    model = write_demo_model(folder / "demo.gguf")
    worker = WorkerProcess(folder / "demo", model, slots=2, model_name="demo.Q8_0.gguf", model_ref=REFERENCE)
    yield worker
    worker.kill()


@pytest.fixture(scope="module")
def flat(folder: Path) -> Iterator[WorkerProcess]:
    """The same model with its right token's lead so small that it may say anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_model, "_OUTPUT_SCALE", 0.05)
        model = write_demo_model(folder / "flat.gguf")
    worker = WorkerProcess(folder / "flat", model, slots=2)
    yield worker
    worker.kill()


@pytest.fixture(scope="module")
def real(folder: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(folder / "real", real_model(), slots=2, ctx_per_slot=2048)
    yield worker
    worker.kill()


@pytest.fixture
async def client(demo: WorkerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async for one in client_of(demo, timeout=120):
        yield one


@pytest.fixture
async def flat_client(flat: WorkerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async for one in client_of(flat, timeout=120):
        yield one


@pytest.fixture
async def real_client(real: WorkerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async for one in client_of(real, timeout=120):
        yield one


@pytest.fixture
async def http(demo: WorkerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    await demo.until("idle", "busy")
    async with session_of(demo) as session:
        yield session


# --- fields


async def test_what_openais_client_may_send_beside_is_passed_over(client: openai.AsyncOpenAI):
    answer = await client.chat.completions.create(
        model="demo.Q8_0.gguf", messages=CHAT, store=False, metadata={"a": "b"}, service_tier="auto",
        safety_identifier="me", prompt_cache_key="x", prompt_cache_retention="24h", verbosity="low", user="me",
        modalities=["text"], reasoning_effort="low", parallel_tool_calls=True, tools=[], seed=2**40, top_p=0, n=1,
        stream_options=None, stop=None, logit_bias=None, temperature=None, max_tokens=None,
        response_format={"type": "text"}, prediction={"type": "content", "content": "x"},
        extra_body={"max_completion_tokens": 100.0, "colour": 1},
    )  # fmt: skip
    assert answer.choices[0].message.content == DEMO_SENTENCE
    completion = await client.completions.create(
        model="demo.Q8_0.gguf", prompt="A", best_of=1, suffix=None, max_tokens=4, seed=-1, stop=[]
    )
    assert completion.choices[0].text == "BCDE"


async def test_a_stream_with_nulls_is_the_same(http: aiohttp.ClientSession):
    body = {"messages": CHAT, "stream": None, "stream_options": {"include_usage": None}, "n": None, "stop": None}
    status, answer = await post(http, "/v1/chat/completions", **body, max_tokens=-1, tool_choice=None, tools=None)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, DEMO_SENTENCE)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"web_search_options": {}}, "unsupported_parameter", "web_search_options"),
        ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "unsupported_parameter", "tools.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "unsupported_content", "messages.0.content.0"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(
    client: openai.AsyncOpenAI, body: dict[str, Any], code: str, param: str
):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**{"model": "demo.Q8_0.gguf", "messages": CHAT, **body})
    assert (refused.value.code, refused.value.param, refused.value.type) == (code, param, "invalid_request_error")


async def test_the_model_is_found_by_each_of_its_names(client: openai.AsyncOpenAI, http: aiohttp.ClientSession):
    (listed,) = (await client.models.list()).data
    names = [listed.id, *listed.model_extra["aliases"]] if listed.model_extra else []
    assert names == ["demo.Q8_0.gguf", REFERENCE, "org/repo@main", "demo.Q8_0"]
    for name in names:
        assert (await client.models.retrieve(name)).id == listed.id
        async with http.get(f"/v1/models/{name}?api-version=2026-01-01") as answer:
            assert (await answer.json())["id"] == listed.id
        answer = await client.completions.create(model=name, prompt="A", max_tokens=2)
        assert (answer.choices[0].text, answer.model) == ("BC", listed.id)
    for name in ("another", "org/repo/other"):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve(name)
        assert missing.value.code == "model_not_found"


async def test_answers_say_what_they_took_and_which_worker_gives_the_same(client: openai.AsyncOpenAI):
    body: Any = {"model": "demo.Q8_0.gguf", "prompt": "a long prompt: A", "max_tokens": 5, "n": 2}
    whole = await client.completions.create(**body)
    assert whole.model_extra is not None and (whole.system_fingerprint or "").startswith("fp_")
    timings = whole.model_extra["timings"]
    assert timings["predicted_n"] == 10 and timings["predicted_ms"] > 0 and timings["prompt_ms"] > 0
    assert whole.usage is not None and timings["prompt_n"] + timings["cache_n"] == whole.usage.prompt_tokens
    assert timings["predicted_per_second"] == pytest.approx(1000 * 10 / timings["predicted_ms"], rel=0.01)
    chunks = [chunk async for chunk in await client.completions.create(**body, stream=True)]
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    told = [(chunk.model_extra or {}).get("timings") for chunk in chunks]
    assert [one["predicted_n"] for one in told if one] == [5, 5]
    stream = await client.chat.completions.create(model="demo.Q8_0.gguf", messages=CHAT, stream=True)
    events = [event async for event in stream]
    assert {event.system_fingerprint for event in events} == {whole.system_fingerprint}
    assert events[-1].model_extra and events[-1].model_extra["timings"]["predicted_n"] > 5


# --- turns


async def test_the_assistants_last_words_are_continued(client: openai.AsyncOpenAI, http: aiohttp.ClientSession):
    messages: Any = [*CHAT, {"role": "assistant", "content": "The letters: A"}]
    for fields in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        answer = await client.chat.completions.create(
            model="demo.Q8_0.gguf", messages=messages, max_tokens=5, extra_body=fields
        )
        assert answer.choices[0].message.content == expected_completion("A", 5)
    for fields in ({"continue_final_message": False}, {"add_generation_prompt": True}):
        answer = await client.chat.completions.create(model="demo.Q8_0.gguf", messages=messages, extra_body=fields)
        assert answer.choices[0].message.content == DEMO_SENTENCE
    _, told = await post(http, "/v1/tokenize", messages=messages)
    status, answer = await post(http, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert status == 200 and told["count"] == answer["usage"]["prompt_tokens"]
    status, answer = await post(http, "/v1/chat/completions", messages=CHAT, continue_final_message=True)
    assert (status, answer["error"]["param"]) == (400, "continue_final_message")


async def test_a_real_model_goes_on_where_it_was_told_to(real_client: openai.AsyncOpenAI):
    messages: Any = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is the city of"},
    ]
    answer = await real_client.chat.completions.create(model="demo", messages=messages, max_tokens=4, temperature=0)
    content = answer.choices[0].message.content or ""
    assert content.startswith(" Paris"), content


# --- tools


def without_markup(text: str | None) -> bool:
    return not any(one in (text or "") for one in MARKUP)


async def test_a_named_function_is_called_once_and_no_cut_leaks_its_markup(
    flat_client: openai.AsyncOpenAI, real_client: openai.AsyncOpenAI
):
    for client in (flat_client, real_client):
        for limit in (1, 4, 12, 300):
            body: Any = {"model": "demo", "messages": CHAT, "tools": [TOOL], "tool_choice": NAMED, "max_tokens": limit}
            choice = (await client.chat.completions.create(**body, seed=3, temperature=0)).choices[0]
            assert without_markup(choice.message.content), choice
            calls = choice.message.tool_calls or []
            assert len(calls) <= 1
            content, arguments = "", ""
            async for chunk in await client.chat.completions.create(**body, seed=3, temperature=0, stream=True):
                for part in chunk.choices:
                    content += part.delta.content or ""
                    for call in part.delta.tool_calls or []:
                        assert call.index == 0 and call.function is not None
                        arguments += call.function.arguments or ""
            assert without_markup(content)
            assert arguments == "".join(getattr(call, "function").arguments for call in calls)  # noqa: B009
            if choice.finish_reason == "tool_calls":
                jsonschema.validate(json.loads(arguments), {**WEATHER, "properties": {"city": {}, "unit": {}}})
    assert choice.finish_reason == "tool_calls", "the last one had room enough"


class Node(BaseModel):
    """A list of numbers."""

    number: Literal[1, 2, 3]
    next: Optional[Node] = None  # noqa: UP045  as people write it


@pytest.mark.parametrize("by", ["model_dump", "object", "deltas", "exclude_none"])
async def test_a_whole_round_of_tools(real_client: openai.AsyncOpenAI, by: str):
    ask: Any = [{"role": "user", "content": "What is the weather in Oslo, in celsius? Use the tool."}]
    body: Any = {"model": "demo", "tools": [TOOL], "temperature": 0}
    if by == "deltas":
        together: dict[str, Any] = {"role": "", "content": "", "tool_calls": []}
        stream = await real_client.chat.completions.create(
            **body, messages=ask, tool_choice="required", parallel_tool_calls=False, stream=True
        )
        async for chunk in stream:
            for choice in chunk.choices:
                merge(together, choice.delta.model_dump())
        message: Any = together
    else:
        answer = await real_client.chat.completions.create(
            **body, messages=ask, tool_choice="required", parallel_tool_calls=False
        )
        message = answer.choices[0].message
        if by != "object":
            message = message.model_dump(exclude_none=by == "exclude_none")
    calls = message.tool_calls if isinstance(message, ChatCompletionMessage) else message["tool_calls"]
    (call,) = calls or []
    id_ = call["id"] if isinstance(call, dict) else call.id
    result = {"role": "tool", "tool_call_id": id_, "content": "It is 7 degrees celsius in Oslo, with light rain."}
    said: Any = [*ask, message, result]
    body = {**body, "messages": said, "tool_choice": "none", "max_tokens": 40}
    answer = await real_client.chat.completions.create(**body)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert "7" in (answer.choices[0].message.content or "")


def merge(together: dict[str, Any], delta: dict[str, Any]) -> None:
    """Put a delta to those before it, as people write it: texts joined, lists by their index."""
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value or []:
                while len(together["tool_calls"]) <= call["index"]:
                    together["tool_calls"].append({})
                merge(together["tool_calls"][call["index"]], call)
        elif isinstance(value, dict):
            merge(together.setdefault(name, {}), value)
        elif isinstance(value, str):
            together[name] = together.get(name, "") + value
        elif value is not None:
            together[name] = value


async def test_recursive_models_are_parsed(flat_client: openai.AsyncOpenAI):
    ended = 0
    for seed in range(6):
        body: Any = {"model": "demo", "messages": CHAT, "seed": seed, "max_tokens": 300}
        try:
            parsed = await flat_client.chat.completions.parse(**body, response_format=Node)
        except openai.LengthFinishReasonError:
            # This model has no will to end.
            continue
        assert isinstance(parsed.choices[0].message.parsed, Node)
        ended += 1
    assert ended


async def test_beside_tools_an_answer_keeps_to_its_format(
    flat_client: openai.AsyncOpenAI, real_client: openai.AsyncOpenAI
):
    schema = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "rain", "schema": schema}}
    for client in (flat_client, real_client):
        for seed in range(2):
            body: Any = {"model": "demo", "messages": CHAT, "tools": [TOOL], "response_format": form, "max_tokens": 300}
            choice = (await client.chat.completions.create(**body, seed=seed)).choices[0]
            assert without_markup(choice.message.content)
            for call in choice.message.tool_calls or []:
                assert getattr(call, "function").name == "get_weather"  # noqa: B009
            if choice.finish_reason == "stop":
                jsonschema.validate(json.loads(choice.message.content or ""), schema)
    # The calls may be none of the choices.
    body = {"model": "demo", "messages": CHAT, "tools": [TOOL], "response_format": form, "tool_choice": "none"}
    choice = (await real_client.chat.completions.create(**body, max_tokens=100)).choices[0]
    jsonschema.validate(json.loads(choice.message.content or ""), schema)


# --- size


async def test_a_long_context_takes_a_long_body(tmp_path: Path):
    """A context of 128 k tokens is more than one mebibyte of text."""
    model = write_demo_model(tmp_path / "m.gguf", context_length=131_072)
    worker = WorkerProcess(tmp_path, model, slots=1, ctx_per_slot=131_072)
    try:
        await worker.until("idle")
        async with session_of(worker) as session:
            # Each word of the model's sentence is a token.
            text = f"{DEMO_SENTENCE} " * 10_000
            assert len(text) > 1024 * 1024
            status, told = await post(session, "/v1/tokenize", messages=[{"role": "user", "content": text}])
            assert status == 200, told
            status, answer = await post(session, "/v1/completions", prompt="x" * (5 * 1024 * 1024))
            assert (status, answer["error"]["code"]) == (413, "payload_too_large")
            assert "4 MiB" in answer["error"]["message"]
    finally:
        worker.kill()
