"""A real, quantised chat model through a real worker and a real hive.

What it says must make sense: processors differ in the last bits, and with them the words. The models with known
answers are for exact text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import gguf
import jinja2
import jsonschema
import pytest

from tests.support.gguf.real_model import real_model
from tests.support.hives import INFERENCE_TOKEN, HiveProcess, a_hive
from tests.support.worker_process import WorkerProcess, events, post, session_of

SLOTS, CONTEXT = 3, 2048
# One thread each: llama.cpp's spin while they wait, and the tests share few cores.
ORDER: dict[str, Any] = {"slots": SLOTS, "ctx_per_slot": CONTEXT, "threads": 1}
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "Norway": "Oslo",
    "Hungary": "Budapest",
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "country": {"type": "string", "maxLength": 30},
        "capital": {"type": "string", "maxLength": 30},
        "millions": {"type": "integer", "minimum": 1, "maximum": 2000},
        "continent": {"enum": ["Africa", "America", "Asia", "Europe", "Oceania"]},
    },
    "required": ["country", "capital", "millions", "continent"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}


def function(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    function("get_weather", "The weather of a city.", WEATHER),
    function("get_time", "The time of day in a city.", {"type": "object", "properties": {}}),
]


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def capital_of(country: str) -> str:
    return f"What is the capital of {country}? Answer in one short sentence."


@pytest.fixture(scope="module")
def model() -> Path:
    return real_model()


@pytest.fixture(scope="module")
def worker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    started = WorkerProcess(tmp_path_factory.mktemp("worker"), model, **ORDER)
    yield started
    started.kill()


@pytest.fixture
async def http(worker: WorkerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    await worker.until("idle")
    async with session_of(worker) as session:
        yield session


async def chat(session: aiohttp.ClientSession, messages: list[dict[str, str]], **body: Any) -> dict[str, Any]:
    """The one choice of a chat's answer, drawn without chance."""
    body = {"temperature": 0, "max_tokens": 40, **body}
    status, answer = await post(session, "/v1/chat/completions", messages=messages, **body)
    assert status == 200, answer
    return answer["choices"][0]


async def streamed(session: aiohttp.ClientSession, messages: list[dict[str, str]], **body: Any) -> tuple[str, str]:
    """The text of a streamed chat, and why it ended."""
    body = {"messages": messages, "stream": True, "temperature": 0, "max_tokens": 40, **body}
    text, reason = "", ""
    async with session.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for event in events(answer):
            for choice in json.loads(event)["choices"] if event != "[DONE]" else []:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
    return text, reason


async def tokens(session: aiohttp.ClientSession, **what: Any) -> list[int]:
    status, answer = await post(session, "/v1/tokenize", **what)
    assert status == 200, answer
    return answer["tokens"]


@pytest.fixture(scope="module")
def header(model: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(model)


def value_of(header: gguf.GGUFReader, key: str) -> Any:
    field = header.get_field(key)
    assert field is not None, key
    return field.contents()


@pytest.mark.parametrize(
    "messages",
    [
        ask("Hi"),
        [{"role": "system", "content": "Be brief."}, *ask(" Two  spaces, Ümläute and 中文\n")],
        [*ask("One"), {"role": "assistant", "content": "1"}, *ask("Two")],
    ],
)
async def test_its_own_template_is_kept_to(
    http: aiohttp.ClientSession, header: gguf.GGUFReader, messages: list[dict[str, str]]
):
    source = value_of(header, "tokenizer.chat_template")
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    text = template.render(messages=messages, add_generation_prompt=True)
    # What ChatML is, so that template and test cannot be wrong together.
    turns = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)
    assert text.endswith(f"{turns}<|im_start|>assistant\n")
    vocabulary = value_of(header, "tokenizer.ggml.tokens")
    expected: list[int] = []
    for part in re.split(r"(<\|im_\w+\|>)", text):
        mark = part.startswith("<|im_")
        expected += [vocabulary.index(part)] if mark else await tokens(http, prompt=part, add_special_tokens=False)
    assert await tokens(http, messages=messages) == expected


@pytest.mark.parametrize("country", list(CAPITALS)[:3])
async def test_it_knows_and_ends_its_turn(http: aiohttp.ClientSession, country: str):
    choice = await chat(http, ask(capital_of(country)))
    text = choice["message"]["content"]
    assert CAPITALS[country] in text
    assert choice["finish_reason"] == "stop" and "<|" not in text, "its end of turn ends the answer and is not shown"
    text, reason = await streamed(http, ask(capital_of(country)))
    assert CAPITALS[country] in text and reason == "stop"


async def test_it_completes_a_text(http: aiohttp.ClientSession):
    body = {"prompt": "The capital of France is", "max_tokens": 5, "temperature": 0}
    status, answer = await post(http, "/v1/completions", **body)
    assert status == 200 and "Paris" in answer["choices"][0]["text"]


async def test_a_stop_string_ends_it(http: aiohttp.ClientSession):
    messages = ask("Write the numbers 1, 2, 3, 4, 5.")
    whole = await chat(http, messages)
    assert "3" in whole["message"]["content"] and "4" in whole["message"]["content"]
    choice = await chat(http, messages, stop=["4"])
    for text, reason in (
        (choice["message"]["content"], choice["finish_reason"]),
        await streamed(http, messages, stop=["4"]),
    ):
        assert "3" in text and "4" not in text and reason == "stop"


@pytest.mark.parametrize("temperature", [0, 1])
async def test_json_keeps_to_its_schema(http: aiohttp.ClientSession, temperature: float):
    choice = await chat(
        http,
        ask("Describe France as JSON with country, capital, millions of inhabitants and continent."),
        response_format={"type": "json_schema", "json_schema": {"name": "country", "schema": SCHEMA, "strict": True}},
        temperature=temperature,
        seed=1,
        max_tokens=200,
    )
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


@pytest.mark.parametrize("wanted", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_tool_that_must_be_called_is_called_rightly(http: aiohttp.ClientSession, wanted: Any):
    choice = await chat(
        http,
        ask("What is the weather in Paris, in celsius?"),
        tools=TOOLS,
        tool_choice=wanted,
        parallel_tool_calls=False,
        max_tokens=200,
    )
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    assert call["function"]["name"] in (schemas if wanted == "required" else {"get_weather"})
    jsonschema.validate(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])


async def test_the_context_is_used_to_its_end_and_no_further(http: aiohttp.ClientSession):
    long = "The quick brown fox jumps over the lazy dog. " * 175 + "\n\n" + capital_of("France")
    prompt = await tokens(http, messages=ask(long))
    assert 1700 < len(prompt) < CONTEXT - 40
    assert "Paris" in (await chat(http, ask(long)))["message"]["content"]

    full = prompt + prompt[: CONTEXT - 1 - len(prompt)]
    status, answer = await post(http, "/v1/completions", prompt=full, max_tokens=40, ignore_eos=True)
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length"), answer
    assert answer["usage"]["total_tokens"] == CONTEXT and answer["usage"]["completion_tokens"] == 1

    for path, body in (
        ("/v1/completions", {"prompt": [*full, full[0]]}),
        ("/v1/chat/completions", {"messages": ask(long + long)}),
    ):
        status, answer = await post(http, path, **body)
        error = answer["error"]
        assert (status, error["code"]) == (400, "context_length_exceeded")
        assert f"a slot holds {CONTEXT}" in error["message"] and "ctx_per_slot" in error["message"]
        assert error["details"]["prompt_tokens"] >= error["details"]["context_per_slot"] == CONTEXT
    assert "Paris" in (await chat(http, ask(long)))["message"]["content"], "what came in between harms nobody"


async def test_eight_clients_on_three_slots_get_each_their_own_answer(
    http: aiohttp.ClientSession, worker: WorkerProcess
):
    async def whole(country: str) -> str:
        return (await chat(http, ask(capital_of(country))))["message"]["content"]

    async def parts(country: str) -> str:
        return (await streamed(http, ask(capital_of(country))))[0]

    asked = [parts(country) if number % 2 else whole(country) for number, country in enumerate(CAPITALS)]
    texts = dict(zip(CAPITALS, await asyncio.gather(*asked), strict=True))
    assert all(CAPITALS[country] in text for country, text in texts.items()), texts
    health = await worker.until("idle")
    assert (health["slots_busy"], health["queued"]) == (0, 0)


async def test_it_makes_no_vectors(http: aiohttp.ClientSession):
    status, answer = await post(http, "/v1/embeddings", input="Hello")
    assert (status, answer["error"]["code"]) == (400, "model_makes_no_embeddings")


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[HiveProcess]:
    async with a_hive(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def session_to(worker: dict[str, Any]) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {INFERENCE_TOKEN}"}
    async with aiohttp.ClientSession(worker["url"], headers=headers, timeout=aiohttp.ClientTimeout(120)) as session:
        yield session


STORY: dict[str, Any] = {"ignore_eos": True, "max_tokens": 150}


async def test_a_worker_killed_in_mid_answer_answers_again(hive: HiveProcess, model: Path):
    worker = await hive.idle(f"file:{model}", **ORDER)
    async with session_to(worker) as session:
        body = {"messages": ask("Write a long story about a dragon."), "stream": True, **STORY}
        with pytest.raises(aiohttp.ClientError):
            async with session.post("/v1/chat/completions", json=body) as answer:
                async for event in events(answer):
                    if json.loads(event)["choices"][0]["delta"].get("content"):
                        os.kill(worker["pid"], signal.SIGKILL)
        again = await hive.worker(worker["id"], status="idle", restarts=1)
        assert again["url"] == worker["url"] and again["last_error"]["code"] == "killed"
        assert "Paris" in (await chat(session, ask(capital_of("France"))))["message"]["content"]


async def test_a_new_agent_takes_over_a_worker_under_load(hive: HiveProcess, model: Path):
    worker = await hive.idle(f"file:{model}", **ORDER)
    async with session_to(worker) as session:
        # More than there are slots: some answers stream and some wait while the agent is away.
        stories = [
            asyncio.create_task(streamed(session, ask(f"Write a long story about a {hero}."), **STORY))
            for hero in ("dragon", "pirate", "wizard", "queen", "fox")
        ]
        await hive.worker(worker["id"], status="busy", slots_busy=SLOTS)
        await hive.end(signal.SIGKILL)
        asked = asyncio.create_task(chat(session, ask(capital_of("Italy"))))
        await hive.start()
        adopted = await hive.worker(worker["id"], status="busy")
        assert (adopted["pid"], adopted["restarts"]) == (worker["pid"], 0)
        assert "Rome" in (await asked)["message"]["content"]
        for text, reason in await asyncio.gather(*stories):
            assert reason == "length" and len(text) > 100
        assert (await hive.worker(worker["id"], status="idle"))["pid"] == worker["pid"]
