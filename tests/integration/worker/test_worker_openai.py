"""The `openai` client through every parameter that a worker takes, against a real worker."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import numpy as np
import openai
import pytest
from openai.types import CompletionChoice
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion import Choice

from llama_orch import demo_model
from llama_orch.demo_model import BEGIN, DEMO_SENTENCE, DemoSpec, expected_completion, write_gguf
from tests.support.worker_process import TOKEN, WorkerProcess, post, session_of, until_metric

SLOTS = 4
CHAT: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "rain": {"type": "boolean"},
    },
    "required": ["city", "days", "rain"],
    "additionalProperties": False,
}


def function(name: str, parameters: dict[str, Any] = SCHEMA) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "For a test.", "parameters": parameters}}


TOOLS: Any = [function("forecast"), function("stop", {"type": "object", "properties": {}})]


def write_flat_model(path: Path) -> Path:
    """The demonstration model with the right token's lead so small that every sampling parameter shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_model, "_OUTPUT_SCALE", 0.05)
        write_gguf(path, DemoSpec(name="flat"))
    return path


def write_vector_model(path: Path) -> Path:
    """The demonstration model as one that makes vectors: the mean over a text's tokens, which are one-hot."""
    with pytest.MonkeyPatch.context() as patch:
        plain = demo_model._add_metadata

        def add(writer: gguf.GGUFWriter, spec: DemoSpec, width: int) -> None:
            plain(writer, spec, width)
            writer.add_pooling_type(gguf.PoolingType.MEAN)

        patch.setattr(demo_model, "_add_metadata", add)
        write_gguf(path, DemoSpec(name="vectors", context_length=512))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def serving(folder: Path, model: Path, **order: Any) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(folder / f"worker-{model.stem}", model, **{"slots": SLOTS, **order})
    yield worker
    worker.kill()


@pytest.fixture(scope="module")
def demo(folder: Path) -> Iterator[WorkerProcess]:
    write_gguf(folder / "demo.gguf", DemoSpec())
    yield from serving(folder, folder / "demo.gguf")


@pytest.fixture(scope="module")
def flat(folder: Path) -> Iterator[WorkerProcess]:
    yield from serving(folder, write_flat_model(folder / "flat.gguf"))


@pytest.fixture(scope="module")
def vectors(folder: Path) -> Iterator[WorkerProcess]:
    yield from serving(folder, write_vector_model(folder / "vectors.gguf"), ctx_per_slot=128)


async def client_of(worker: WorkerProcess, timeout: float = 60) -> AsyncIterator[openai.AsyncOpenAI]:
    await worker.until("idle", "busy")
    async with openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key=TOKEN, max_retries=0, timeout=timeout) as client:
        yield client


@pytest.fixture
async def client(demo: WorkerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async for one in client_of(demo):
        yield one


@pytest.fixture
async def flat_client(flat: WorkerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async for one in client_of(flat):
        yield one


@pytest.fixture
async def vector_client(vectors: WorkerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async for one in client_of(vectors):
        yield one


async def complete(client: openai.AsyncOpenAI, prompt: Any = "A", **body: Any) -> str:
    """The text of one completion; whole and streamed must be the same."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": 20, "seed": 1, **body}
    whole = await client.completions.create(**body)
    stream = await client.completions.create(**body, stream=True)
    parts = [choice async for chunk in stream for choice in chunk.choices]
    assert "".join(part.text for part in parts) == whole.choices[0].text
    assert parts[-1].finish_reason == whole.choices[0].finish_reason
    return whole.choices[0].text


async def chat(client: openai.AsyncOpenAI, **body: Any) -> Choice:
    """One chat's answer; whole and streamed must be the same."""
    body = {"model": "demo", "messages": CHAT, "seed": 1, **body}
    whole = (await client.chat.completions.create(**body)).choices[0]
    stream = await client.chat.completions.create(**body, stream=True)
    content, calls, reasons = "", {}, []
    async for chunk in stream:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                name, arguments = calls.get(call.index, ("", ""))
                assert call.function is not None
                calls[call.index] = (name or call.function.name, arguments + (call.function.arguments or ""))
            reasons.append(choice.finish_reason)
    assert content == (whole.message.content or "")
    assert list(calls.values()) == [(call.name, call.arguments) for call in called(whole)]
    assert [reason for reason in reasons if reason] == [whole.finish_reason]
    return whole


def called(choice: Choice) -> list[Any]:
    calls = choice.message.tool_calls or []
    assert all(isinstance(call, ChatCompletionMessageFunctionToolCall) and call.id for call in calls)
    return [call.function for call in calls if isinstance(call, ChatCompletionMessageFunctionToolCall)]


async def test_models_are_listed(client: openai.AsyncOpenAI):
    assert [(model.id, model.owned_by) async for model in client.models.list()] == [("demo", "llama-orch")]


async def test_completions_whole_and_streamed(client: openai.AsyncOpenAI):
    assert await complete(client, temperature=0, top_p=0.5, user="me") == expected_completion("A", 20)
    assert await complete(client, stop="F") == "BCDE"
    assert await complete(client, stop=["XY", "GH"], max_tokens=9) == "BCDEF"
    assert await complete(client, "no letter!", max_tokens=100) == DEMO_SENTENCE
    assert await complete(client, [BEGIN, *(await tokens(client, "A"))[1:]], max_tokens=3) == "BCD"


async def tokens(client: openai.AsyncOpenAI, text: str) -> list[int]:
    return (await client.post("/tokenize", body={"prompt": text}, cast_to=dict[str, Any]))["tokens"]


async def test_several_prompts_and_several_answers(client: openai.AsyncOpenAI):
    answer = await client.completions.create(model="demo", prompt=["A", "x"], n=3, max_tokens=4)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == ["BCDE"] * 3 + ["yzab"] * 3
    assert answer.usage is not None
    # A prompt is counted once, however many answers it has.
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 24)
    stream = await client.completions.create(model="demo", prompt=["A", "x"], n=2, max_tokens=4, stream=True)
    texts = [""] * 4
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["BCDE", "BCDE", "yzab", "yzab"]


async def test_answers_to_one_prompt_differ_and_follow_from_the_seed(flat_client: openai.AsyncOpenAI):
    async def texts(seed: int) -> list[str]:
        answer = await flat_client.completions.create(model="demo", prompt="A", n=4, max_tokens=20, seed=seed)
        return [choice.text for choice in answer.choices]

    first = await texts(7)
    assert len(set(first)) == 4
    assert await texts(7) == first
    assert await texts(8) != first


async def test_chats_whole_and_streamed(client: openai.AsyncOpenAI):
    assert (await chat(client)).message.content == DEMO_SENTENCE
    short = await chat(client, max_completion_tokens=3)
    assert (short.message.content, short.finish_reason) == ("Hello! This is", "length")
    assert (await chat(client, max_tokens=2)).message.content == "Hello! This"
    assert (await chat(client, stop=" is", temperature=0)).message.content == "Hello! This"
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}]}]
    assert (await chat(client, messages=[*parts, *CHAT[1:]])).message.content == DEMO_SENTENCE
    several = await client.chat.completions.create(model="demo", messages=CHAT, n=3)
    assert [choice.message.content for choice in several.choices] == [DEMO_SENTENCE] * 3


async def test_usage_is_streamed_where_it_is_wanted_and_tells_what_was_cached(client: openai.AsyncOpenAI):
    prompt = "a beginning that no other test of this file has: 0"
    size = len(await tokens(client, prompt))
    for cached in (0, size - 1):
        stream = await client.completions.create(
            model="demo", prompt=prompt, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
        *rest, last = [chunk async for chunk in stream]
        assert all(chunk.usage is None for chunk in rest) and not last.choices
        assert last.usage is not None and last.usage.prompt_tokens_details is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (size, 5, size + 5)
        # The first token is there for every prompt.
        assert last.usage.prompt_tokens_details.cached_tokens in {cached, max(cached, 1)}
    whole = await client.chat.completions.create(model="demo", messages=CHAT)
    again = await client.chat.completions.create(model="demo", messages=CHAT)
    assert whole.usage is not None and again.usage is not None and again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1


async def test_every_way_to_draw_is_obeyed(flat_client: openai.AsyncOpenAI):
    alphabet = expected_completion("A", 20)
    drawn = await complete(flat_client)
    assert drawn != alphabet
    assert await complete(flat_client, seed=2) != drawn
    assert await complete(flat_client, temperature=0) == alphabet
    assert await complete(flat_client, temperature=0.01) == alphabet
    assert await complete(flat_client, top_p=0.001) == alphabet
    assert await complete(flat_client, extra_body={"top_k": 1}) == alphabet
    assert await complete(flat_client, extra_body={"min_p": 1.0}) == alphabet
    thirty = expected_completion("0", 30)
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        punished = await complete(flat_client, "0", max_tokens=30, temperature=0, **penalty)
        assert punished[:10] == thirty[:10] and punished != thirty


async def test_biases_move_tokens(client: openai.AsyncOpenAI, flat_client: openai.AsyncOpenAI):
    wanted = (await tokens(client, "Q"))[-1]
    assert await complete(flat_client, temperature=0, max_tokens=5, logit_bias={str(wanted): 100}) == "QQQQQ"
    hindered = (await tokens(client, "B"))[-1]
    text = await complete(flat_client, temperature=0, max_tokens=5, logit_bias={str(hindered): -100})
    assert not text.startswith("B")
    assert (await chat(flat_client, max_tokens=2, temperature=0, logit_bias={str(wanted): 100})).message.content == "QQ"
    # A bias of 3 beats the right token's lead of 1, until a penalty divides it by 10.
    small: Any = {"temperature": 0, "max_tokens": 4, "logit_bias": {str(wanted): 3}}
    assert await complete(flat_client, **small) == "QQQQ"
    assert await complete(flat_client, **small, extra_body={"repeat_penalty": 10.0}) == "QRST"


async def test_the_end_may_be_ignored(client: openai.AsyncOpenAI):
    text = await complete(client, "!", temperature=0, max_tokens=60, extra_body={"ignore_eos": True})
    assert text.startswith(DEMO_SENTENCE) and len(text) > len(DEMO_SENTENCE)


async def test_probabilities_of_completions(flat_client: openai.AsyncOpenAI):
    for stream in (False, True):
        body: Any = {"model": "demo", "prompt": "A", "max_tokens": 6, "temperature": 0, "logprobs": 3}
        choices: list[CompletionChoice]
        if stream:
            choices = [
                one
                async for chunk in await flat_client.completions.create(**body, stream=True)
                for one in chunk.choices
            ]
        else:
            choices = (await flat_client.completions.create(**body)).choices
        told = [one.logprobs for one in choices if one.logprobs]
        assert [token for one in told for token in one.tokens or []] == list("BCDEFG")
        values = [value for one in told for value in one.token_logprobs or []]
        assert len(values) == 6 and all(value < 0 for value in values)
        tops = [top for one in told for top in one.top_logprobs or []]
        assert all(len(top) == 3 for top in tops)
        assert [max(top, key=lambda token: top[token]) for top in tops] == list("BCDEFG")
        assert [offset for one in told for offset in one.text_offset or []] == list(range(6))
    none = await flat_client.completions.create(model="demo", prompt="A", max_tokens=2, logprobs=0, temperature=0)
    assert none.choices[0].logprobs is not None and none.choices[0].logprobs.tokens == ["B", "C"]


async def test_a_prompt_is_echoed_with_its_probabilities(client: openai.AsyncOpenAI):
    assert await complete(client, "see A", max_tokens=3, echo=True) == "see ABCD"
    only = await client.completions.create(model="demo", prompt="ABC", max_tokens=0, echo=True, logprobs=1)
    assert only.choices[0].text == "ABC"
    told = only.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.token_logprobs is not None
    assert [*told.tokens[1:]] == ["A", "B", "C"]
    assert told.token_logprobs[0] is None
    # `B` after `A` and `C` after `B` are what the model would say; `A` after nothing is not.
    assert told.token_logprobs[1] < -5 and all(value > -0.01 for value in told.token_logprobs[2:])


async def test_probabilities_of_chats(client: openai.AsyncOpenAI):
    for stream in (False, True):
        body: Any = {"model": "demo", "messages": CHAT, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
        if stream:
            chunks = await client.chat.completions.create(**body, stream=True)
            parts = [one.logprobs async for chunk in chunks for one in chunk.choices]
        else:
            parts = [one.logprobs for one in (await client.chat.completions.create(**body)).choices]
        told = [token for part in parts if part for token in part.content or []]
        assert "".join(token.token for token in told) == "Hello! This is"
        assert all(-0.01 < token.logprob <= 0 and len(token.top_logprobs) == 2 for token in told)
        assert all(bytes(token.bytes or []).decode() == token.token for token in told)


async def test_a_grammar_is_kept_to(flat_client: openai.AsyncOpenAI):
    grammar = {"grammar": 'root ::= "yes" | "no, " [0-9]{3}'}
    for temperature in (0.0, 1.0):
        for seed in range(3):
            text = await complete(flat_client, temperature=temperature, seed=seed, extra_body=grammar)
            assert text == "yes" or (text[:4] == "no, " and text[4:].isdigit() and len(text) == 7)
    answer = await chat(flat_client, extra_body={"grammar": 'root ::= "Z"{4}'})
    assert (answer.message.content, answer.finish_reason) == ("ZZZZ", "stop")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_json_of_a_schema_fits_it(flat_client: openai.AsyncOpenAI, temperature: float):
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
    answer = await chat(flat_client, response_format=wanted, temperature=temperature)
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.message.content or ""), SCHEMA)


async def test_any_json_object_parses(client: openai.AsyncOpenAI, flat_client: openai.AsyncOpenAI):
    closing = (await tokens(client, "}"))[-1]
    for seed in range(3):
        # This model has no will to end: a bias gives it one.
        answer = await chat(
            flat_client,
            response_format={"type": "json_object"},
            seed=seed,
            logit_bias={str(closing): 5},
            max_tokens=900,
        )
        assert answer.finish_reason == "stop"
        assert isinstance(json.loads(answer.message.content or ""), dict)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"forecast", "stop"}),
        ({"type": "function", "function": {"name": "forecast"}}, {"forecast"}),
        ({"type": "function", "function": {"name": "stop"}}, {"stop"}),
    ],
)
async def test_calls_fit_their_schemas(flat_client: openai.AsyncOpenAI, choice: Any, names: set[str]):
    for seed in range(2):
        answer = await chat(
            flat_client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=seed, max_tokens=900
        )
        assert answer.finish_reason == "tool_calls"
        (call,) = called(answer)
        assert call.name in names
        arguments = json.loads(call.arguments)
        jsonschema.validate(arguments, SCHEMA if call.name == "forecast" else {"type": "object"})


async def test_with_tools_a_model_may_still_just_answer(client: openai.AsyncOpenAI):
    for choice in ("auto", "none"):
        answer = await chat(client, tools=TOOLS, tool_choice=choice)
        assert (answer.message.content, answer.finish_reason) == (DEMO_SENTENCE, "stop")
    result: Any = [
        *CHAT,
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "forecast", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert (await chat(client, messages=result, tools=TOOLS)).message.content == DEMO_SENTENCE


async def test_vectors_are_the_mean_of_their_tokens(vector_client: openai.AsyncOpenAI):
    texts = ["A", "AB", "a longer text, with more tokens than the others have", "A"]
    floats = await vector_client.embeddings.create(model="demo", input=texts, encoding_format="float")
    packed = await vector_client.embeddings.create(model="demo", input=texts)
    assert [one.index for one in floats.data] == [0, 1, 2, 3]
    total = 0
    for text, one, other in zip(texts, floats.data, packed.data, strict=True):
        found = await tokens(vector_client, text)
        total += len(found)
        expected = np.zeros(len(one.embedding))
        # One-hot inputs through blocks of zeros and a norm: every token has its own place and the same weight.
        for token in found:
            expected[token] += 1
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(one.embedding, expected, atol=2e-3)
        np.testing.assert_allclose(other.embedding, one.embedding, rtol=1e-6, atol=1e-7)
        assert math.isclose(float(np.linalg.norm(one.embedding)), 1, rel_tol=1e-5)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens == total
    given = await vector_client.embeddings.create(model="demo", input=await tokens(vector_client, "AB"))
    np.testing.assert_allclose(given.data[0].embedding, floats.data[1].embedding, atol=1e-6)


async def test_vectors_are_cut_to_fewer_dimensions(vector_client: openai.AsyncOpenAI):
    whole = (await vector_client.embeddings.create(model="demo", input="AB")).data[0].embedding
    cut = (await vector_client.embeddings.create(model="demo", input="AB", dimensions=300)).data[0].embedding
    assert len(cut) == 300 and math.isclose(float(np.linalg.norm(cut)), 1, rel_tol=1e-5)
    np.testing.assert_allclose(cut, np.array(whole[:300]) / np.linalg.norm(whole[:300]), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions") as refused:
        await vector_client.embeddings.create(model="demo", input="AB", dimensions=len(whole) + 1)
    assert refused.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError) as refused:
        await vector_client.embeddings.create(model="demo", input="1" * 200)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        await vector_client.completions.create(model="demo", prompt="A")
    assert refused.value.code == "model_generates_no_text"


async def test_many_vectors_at_once_keep_their_order(vector_client: openai.AsyncOpenAI):
    texts = [chr(ord("A") + number % 26) * (2 + number % 20) for number in range(60)]
    answers = await asyncio.gather(
        *(vector_client.embeddings.create(model="demo", input=texts, encoding_format="float") for _ in range(3))
    )
    for answer in answers:
        assert [one.embedding for one in answer.data] == [one.embedding for one in answers[0].data]
    for number in (0, 1, 19, 59):
        alone = await vector_client.embeddings.create(model="demo", input=texts[number], encoding_format="float")
        np.testing.assert_allclose(alone.data[0].embedding, answers[0].data[number].embedding, atol=1e-5)


async def test_texts_and_chats_are_told_as_tokens(demo: WorkerProcess):
    await demo.until("idle")
    async with session_of(demo) as session:
        status, plain = await post(session, "/v1/tokenize", prompt="AB")
        assert status == 200 and plain["count"] == len(plain["tokens"]) == 3 and plain["tokens"][0] == BEGIN
        assert plain["context_per_slot"] == 4096
        _, bare = await post(session, "/v1/tokenize", prompt="AB", add_special_tokens=False)
        assert bare["tokens"] == plain["tokens"][1:]
        assert (await post(session, "/v1/tokenize", prompt="", add_special_tokens=False))[1]["tokens"] == []
        _, talk = await post(session, "/v1/tokenize", messages=CHAT)
        _, answer = await post(session, "/v1/chat/completions", messages=CHAT, max_tokens=1)
        assert talk["count"] == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"temperature": 3}, "invalid_request", "temperature"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"extra_body": {"grammar": "root ::= nothing"}}, "wrong_grammar", "grammar"),
        ({"logit_bias": {"9999": 1}}, "invalid_request", "logit_bias"),
        ({"prompt": "1" * 5000}, "context_length_exceeded", "prompt"),
        ({"prompt": [999_999]}, "invalid_request", "prompt"),
        ({"n": 64, "prompt": ["A"] * 2}, "invalid_request", "n"),
    ],
)
async def test_wrong_requests_are_refused_as_the_client_expects(
    client: openai.AsyncOpenAI, body: dict[str, Any], code: str, param: str
):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(**{"model": "demo", "prompt": "A", **body})
    error = refused.value
    assert (error.status_code, error.code, error.type, error.param) == (400, code, "invalid_request_error", param)


async def test_a_schema_that_cannot_be_held_to_is_refused(client: openai.AsyncOpenAI):
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="demo", messages=CHAT, response_format=wanted)
    assert refused.value.code == "schema_unsupported"
    assert refused.value.param == "response_format.json_schema.schema"


async def test_other_errors_have_their_own_classes(client: openai.AsyncOpenAI, demo: WorkerProcess):
    with pytest.raises(openai.NotFoundError) as missing:
        await client.completions.create(model="another", prompt="A")
    assert (missing.value.code, missing.value.type) == ("model_not_found", "not_found_error")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="demo", input="A")
    assert refused.value.code == "model_makes_no_embeddings"
    async with client.copy(api_key="x" * 30) as stranger:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await stranger.completions.create(model="demo", prompt="A")
    assert (unknown.value.code, unknown.value.type) == ("unauthorized", "authentication_error")


async def test_a_full_worker_says_when_to_come_again(folder: Path):
    from tests.support.gguf import models

    worker = WorkerProcess(folder / "worker-full", models.slow_model(folder / "slow.gguf", blocks=1))
    try:
        async for client in client_of(worker):
            async with session_of(worker) as session:
                ask: Any = {"model": "demo", "prompt": "A", "max_tokens": 3000}
                tasks = [asyncio.create_task(client.completions.create(**ask)) for _ in range(9)]
                await until_metric(session, "queued_requests", 8)
                with pytest.raises(openai.RateLimitError) as full:
                    await client.completions.create(**ask)
                assert (full.value.code, full.value.type) == ("busy", "rate_limit_error")
                assert int(full.value.response.headers["Retry-After"]) >= 1
                for task in tasks:
                    task.cancel()
                await until_metric(session, 'slots{state="busy"}', 0)
    finally:
        worker.kill()
