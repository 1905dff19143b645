"""The worker as a real process on real models whose every answer is known."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from llama_orch import demo_model
from llama_orch.contract.process import FAILURE_FILE
from llama_orch.demo_model import DEMO_SENTENCE, expected_completion, write_demo_model
from tests.support.gguf import models
from tests.support.worker_process import (
    TOKEN,
    Start,
    WorkerProcess,
    complete,
    events,
    metric,
    post,
    session_of,
    until_metric,
)


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    # With the right token's lead this small, every sampling parameter shows in the text.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_model, "_OUTPUT_SCALE", 0.05)
        flat = write_demo_model(folder / "flat.gguf")
    return {
        "demo": write_demo_model(folder / "demo.gguf"),
        "slow": models.slow_model(folder / "slow.gguf"),
        "flat": flat,
    }


@pytest.fixture
def start(tmp_path: Path, model_files: dict[str, Path]) -> Iterator[Start]:
    started: list[WorkerProcess] = []

    def one(model: str | Path, **order: Any) -> WorkerProcess:
        path = model_files[model] if isinstance(model, str) else model
        started.append(WorkerProcess(tmp_path / f"worker-{len(started)}", path, **order))
        return started[-1]

    yield one
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, model_files: dict[str, Path]) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(tmp_path_factory.mktemp("worker"), model_files["demo"])
    yield worker
    worker.kill()


@pytest.fixture
async def http(demo: WorkerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    await demo.until("idle")
    async with session_of(demo) as session:
        yield session


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


async def test_a_completion_is_exact_and_counted(http: aiohttp.ClientSession):
    status, answer = await post(http, "/v1/completions", prompt="A", max_tokens=12, temperature=0)
    assert status == 200
    assert answer["choices"] == [{"index": 0, "text": "BCDEFGHIJKLM", "finish_reason": "length", "logprobs": None}]
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 12,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (answer["object"], answer["model"]) == ("text_completion", "demo")


async def test_a_chat_is_exact_and_ends_by_itself(http: aiohttp.ClientSession):
    status, answer = await post(http, "/v1/chat/completions", messages=CHAT)
    assert status == 200
    message = {"role": "assistant", "content": DEMO_SENTENCE, "tool_calls": None, "refusal": None}
    assert answer["choices"][0]["message"] == message
    assert answer["choices"][0]["finish_reason"] == "stop"
    words = len(DEMO_SENTENCE.split())
    assert answer["usage"]["completion_tokens"] == words
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + words


async def test_a_streamed_chat_equals_the_whole_one(http: aiohttp.ClientSession):
    body = {"messages": CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with http.post("/v1/chat/completions", json=body) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        received = [event async for event in events(answer)]
    assert received[-1] == "[DONE]"
    chunks = [json.loads(event) for event in received[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == DEMO_SENTENCE
    assert len(deltas) == len(DEMO_SENTENCE.split()) + 2
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-3:-1]] == [None, "stop"]
    _, whole = await post(http, "/v1/chat/completions", messages=CHAT)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]


async def test_a_streamed_completion_equals_the_whole_one(http: aiohttp.ClientSession):
    body = {"prompt": "x7", "max_tokens": 30, "stream": True}
    async with http.post("/v1/completions", json=body) as answer:
        received = [event async for event in events(answer)]
    chunks = [json.loads(event) for event in received[:-1]]
    assert received[-1] == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected_completion("7", 30)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize(
    ("stop", "text"),
    [("E", "BCD"), (["EFG"], "BCD"), (["XYZ", "GH", "E!"], "BCDEF"), ([], "BCDEFGHIJKLM"), (["B"], "")],
)
async def test_stop_strings_end_the_text_before_them(http: aiohttp.ClientSession, stop: Any, text: str):
    body = {"prompt": "A", "max_tokens": 12, "stop": stop}
    _, whole = await post(http, "/v1/completions", **body)
    assert whole["choices"][0]["text"] == text
    assert whole["choices"][0]["finish_reason"] == ("length" if len(text) == 12 else "stop")
    async with http.post("/v1/completions", json={**body, "stream": True}) as answer:
        chunks = [json.loads(event) async for event in events(answer) if event != "[DONE]"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


async def test_the_openai_client_notices_no_difference(demo: WorkerProcess, http: aiohttp.ClientSession):
    async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key=TOKEN, max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["demo"]
        text = await client.completions.create(model="demo", prompt="A", max_tokens=5, temperature=0, seed=1, stop="Z")
        assert text.choices[0].text == "BCDEF"
        chat = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hi"}], top_p=0.9, presence_penalty=0.1, user="me"
        )
        assert chat.choices[0].message.content == DEMO_SENTENCE
        stream = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            max_completion_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello! This is"
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
        with pytest.raises(openai.NotFoundError, match="serves demo"):
            await client.completions.create(model="another", prompt="A")
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.completions.create(model="demo", prompt="A", temperature=3)
    async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="x" * 20, max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.completions.create(model="demo", prompt="A")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/v1/chat/completions", "/openapi.json"])
@pytest.mark.parametrize("header", ["", "Bearer wrong-token-of-enough-length"])
async def test_without_the_token_nothing_but_health_and_metrics(http: aiohttp.ClientSession, path: str, header: str):
    method = "POST" if path.endswith("completions") else "GET"
    async with http.request(method, path, headers={"Authorization": header}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (401, "unauthorized")
    for open_path in ("/health", "/metrics"):
        async with http.get(open_path, headers={"Authorization": ""}) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"stop": [str(number) for number in range(65)]}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar"),
    ],
)
async def test_bad_parameters_are_named(http: aiohttp.ClientSession, changes: dict[str, Any], field: str):
    for path, body in (("/v1/completions", {"prompt": "A"}), ("/v1/chat/completions", {"messages": CHAT})):
        status, answer = await post(http, path, **{**body, **changes})
        assert (status, answer["error"]["code"]) == (400, "invalid_request")
        assert any(entry["field"].startswith(field) for entry in answer["error"]["details"]["fields"])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [-1]}, "prompt"),
        ("/v1/completions", {"prompt": [100_000]}, "prompt"),
        ("/v1/completions", {"prompt": "A", "logit_bias": {"100000": 1}}, "logit_bias"),
        ("/v1/completions", {"prompt": "A", "grammar": "root ::= nothing"}, "grammar"),
        ("/v1/completions", {"prompt": ["A"] * 64, "n": 64}, "n"),
        ("/v1/completions", {"prompt": ["A"] * 129}, "prompt"),
        ("/v1/chat/completions", {"messages": CHAT, "tool_choice": "required"}, "tool_choice"),
        ("/v1/chat/completions", {"messages": CHAT, "top_logprobs": 2}, "top_logprobs"),
        ("/v1/embeddings", {"input": "A"}, "model"),
        ("/v1/tokenize", {}, "prompt"),
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "content"),
    ],
)
async def test_bad_prompts_are_named(http: aiohttp.ClientSession, path: str, body: dict[str, Any], field: str):
    status, answer = await post(http, path, **body)
    assert status == 400 and field in answer["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe{}", b'{"prompt": "\\ud800"}', b'{"prompt": "A", "temperature": NaN}']
)
async def test_a_body_that_is_no_good_json_is_400(http: aiohttp.ClientSession, body: bytes):
    async with http.post("/v1/completions", data=body) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_request")
    assert await complete(http, "A", max_tokens=1) == "B"


async def test_odd_prompts_are_answered(http: aiohttp.ClientSession):
    for prompt in ("\x00", "é", "🦙", "<|end|><s>", "\u202e", " "):
        assert await complete(http, prompt, max_tokens=1) == "Hello!"


async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(http: aiohttp.ClientSession):
    for path, body in (
        ("/v1/completions", {"prompt": "1" * 4095}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "1" * 5000}]}),
    ):
        status, answer = await post(http, path, **body)
        error = answer["error"]
        assert (status, error["code"]) == (400, "context_length_exceeded")
        assert error["details"]["context_per_slot"] == 4096
        assert str(error["details"]["prompt_tokens"]) in error["message"] and "4096" in error["message"]
    assert await complete(http, "1" * 4094, max_tokens=5) == "2"


async def test_the_model_may_be_named_by_its_name_its_reference_or_not_at_all(
    http: aiohttp.ClientSession, model_files: dict[str, Path]
):
    for name in ({}, {"model": "demo"}, {"model": f"file:{model_files['demo']}"}):
        assert await complete(http, "A", max_tokens=2, **name) == "BC"
    status, answer = await post(http, "/v1/completions", prompt="A", model="gpt-4")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "demo" in answer["error"]["details"]["served"]


async def test_the_context_of_a_slot_is_what_was_asked_for_and_filled_by_default(start: Start):
    worker = start("demo", ctx_per_slot=64, slots=3)
    health = await worker.until("idle")
    assert (health["context_per_slot"], health["slots"], health["percentage"]) == (64, 3, 100.0)
    async with session_of(worker) as session:
        async with session.get("/v1/models") as answer:
            served = (await answer.json())["data"][0]
        assert (served["id"], served["context_per_slot"], served["slots"]) == ("demo", 64, 3)
        for limit in ({}, {"max_tokens": 1000}):
            status, answer = await post(session, "/v1/completions", prompt="A", **limit)
            assert answer["choices"][0]["text"] == expected_completion("A", 62)
            assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")


async def test_sampling_parameters_are_obeyed(start: Start):
    worker = start("flat")
    await worker.until("idle")
    alphabet = expected_completion("A", 20)
    async with session_of(worker) as session:

        async def text(**body: Any) -> str:
            return await complete(session, "A", max_tokens=20, **body)

        assert await text(temperature=0) == alphabet
        drawn = await text(seed=1)
        assert drawn != alphabet
        assert await text(seed=1) == drawn
        assert await text(seed=2) != drawn
        assert await text() != await text()
        for narrow in ({"top_k": 1}, {"top_p": 0.001}, {"min_p": 1.0}):
            assert await text(**narrow) == alphabet
        thirty = await complete(session, "0", max_tokens=30, temperature=0)
        assert thirty == expected_completion("0", 30)
        for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
            punished = await complete(session, "0", max_tokens=30, temperature=0, **penalty)
            assert punished[:10] == thirty[:10] and punished != thirty


async def test_a_full_queue_is_429_and_the_others_wait_in_line(start: Start):
    worker = start("slow")
    await worker.until("idle")
    async with session_of(worker) as session:
        first = asyncio.create_task(complete(session, "A", max_tokens=400))
        await until_metric(session, 'slots{state="busy"}', 1)
        waiting = [asyncio.create_task(complete(session, "A", max_tokens=2)) for _ in range(8)]
        await until_metric(session, "queued_requests", 8)
        async with session.post("/v1/completions", json={"prompt": "A"}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (429, "busy")
            assert int(answer.headers["Retry-After"]) >= 1
        assert (await worker.until("busy"))["slots_busy"] == 1
        first.cancel()
        assert await asyncio.gather(*waiting) == ["BC"] * 8
        await until_metric(session, 'slots{state="busy"}', 0)
        assert await metric(session, 'answers_total{outcome="busy"}') == 1
        assert await metric(session, 'answers_total{outcome="cancelled"}') == 1
        assert await metric(session, 'answers_total{outcome="length"}') == 8


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot(start: Start, stream: bool):
    worker = start("slow")
    await worker.until("idle")
    async with session_of(worker) as session, session_of(worker) as leaver:

        async def read() -> None:
            body = {"prompt": "A", "stream": stream}
            async with leaver.post("/v1/completions", json=body) as answer:
                await answer.read()

        reading = asyncio.create_task(read())
        await until_metric(session, 'slots{state="busy"}', 1)
        await asyncio.sleep(0.2)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        left = time.monotonic()
        await until_metric(session, 'slots{state="busy"}', 0)
        assert time.monotonic() - left < 2.0
        assert await metric(session, 'answers_total{outcome="cancelled"}') == 1
        assert await complete(session, "A", max_tokens=1) == "B"


async def test_a_client_that_leaves_the_queue_is_forgotten(start: Start):
    worker = start("slow")
    await worker.until("idle")
    async with session_of(worker) as session:
        first = asyncio.create_task(complete(session, "A", max_tokens=300))
        await until_metric(session, 'slots{state="busy"}', 1)
        waiting = asyncio.create_task(complete(session, "A", max_tokens=2))
        await until_metric(session, "queued_requests", 1)
        waiting.cancel()
        await until_metric(session, "queued_requests", 0)
        first.cancel()
        await until_metric(session, 'slots{state="busy"}', 0)


async def test_health_answers_quickly_while_the_engine_works(start: Start):
    worker = start("slow")
    await worker.until("idle")
    async with session_of(worker) as session:
        answer = asyncio.create_task(complete(session, "A", max_tokens=100))
        await until_metric(session, 'slots{state="busy"}', 1)
        seconds = []
        for _ in range(21):
            begun = time.monotonic()
            async with session.get("/health") as health:
                assert (await health.json())["status"] == "busy"
            seconds.append(time.monotonic() - begun)
        assert statistics.median(seconds) < 0.05
        assert await answer == expected_completion("A", 100)


async def test_while_the_model_loads_the_worker_says_so(start: Start, tmp_path: Path):
    # A named pipe holds the load up for as long as the test wants.
    pipe = tmp_path / "late.gguf"
    os.mkfifo(pipe)
    worker = start(pipe)
    health = await worker.until("loading")
    assert health["percentage"] == 0.0 and health["context_per_slot"] is None
    async with session_of(worker) as session:
        for path, body in (("/v1/completions", {"prompt": "A"}), ("/v1/chat/completions", {"messages": CHAT})):
            status, answer = await post(session, path, **body)
            assert (status, answer["error"]["code"]) == (503, "not_ready")
        async with session.get("/v1/models") as answer:
            assert answer.status == 503
        assert await metric(session, 'status{status="loading"}') == 1
    pipe.write_bytes(b"<!doctype html>")
    assert await worker.ended() == 3
    assert worker.failure().code == "model_unreadable"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
async def test_a_worker_that_loads_can_be_stopped(start: Start, tmp_path: Path, number: signal.Signals):
    pipe = tmp_path / "late.gguf"
    os.mkfifo(pipe)
    worker = start(pipe)
    await worker.until("loading")
    worker.process.send_signal(number)
    assert await worker.ended() == 0
    assert not (worker.folder / FAILURE_FILE).exists()


async def test_draining_finishes_what_runs_and_takes_nothing_new(start: Start):
    worker = start("slow")
    await worker.until("idle")
    async with session_of(worker) as session:
        body = {"prompt": "A", "max_tokens": 40, "stream": True}
        async with session.post("/v1/completions", json=body) as answer:
            received = events(answer)
            texts = [json.loads(await anext(received))["choices"][0]["text"]]
            queued = asyncio.create_task(post(session, "/v1/completions", prompt="A"))
            await until_metric(session, "queued_requests", 1)
            worker.process.send_signal(signal.SIGUSR1)
            await worker.until("draining")
            assert (await queued)[0] == 503
            status, refused = await post(session, "/v1/completions", prompt="A")
            assert (status, refused["error"]["code"]) == (503, "not_ready")
            rest = [event async for event in received]
    texts += [json.loads(event)["choices"][0]["text"] for event in rest[:-1]]
    assert "".join(texts) == expected_completion("A", 40)
    assert rest[-1] == "[DONE]"
    assert await worker.ended() == 0


async def test_an_idle_worker_drains_at_once(start: Start):
    worker = start("demo")
    await worker.until("idle")
    async with session_of(worker) as session:
        assert await complete(session, "A", max_tokens=1) == "B"
        worker.process.send_signal(signal.SIGUSR1)
        assert await worker.ended(5) == 0


async def test_asked_to_stop_again_and_again_the_worker_ends_as_asked(start: Start):
    worker = start("slow")
    await worker.until("idle")
    body = {"prompt": "A", "stream": True}
    async with session_of(worker) as session, session.post("/v1/completions", json=body) as answer:
        await anext(events(answer))
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
            worker.process.send_signal(number)
        async with asyncio.timeout(10):
            while worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.002)
    assert worker.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stopping_cuts_the_answers_with_an_error(start: Start, number: signal.Signals):
    worker = start("slow")
    await worker.until("idle")
    async with session_of(worker) as session:
        async with session.post("/v1/completions", json={"prompt": "A", "stream": True}) as answer:
            received = events(answer)
            await anext(received)
            whole = asyncio.create_task(post(session, "/v1/completions", prompt="A"))
            await until_metric(session, "queued_requests", 1)
            worker.process.send_signal(number)
            last = ""
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async for event in received:
                    last = event
        assert json.loads(last)["error"]["code"] == "stopped"
        assert (await whole)[0] == 503
    assert await worker.ended(10) == 0


@pytest.mark.parametrize("kind", ["truncated", "truncated-header", "empty", "page", "missing", "folder"])
async def test_a_model_that_cannot_be_loaded_ends_with_its_reason(start: Start, tmp_path: Path, kind: str):
    path = tmp_path / "model.gguf"
    codes = {"truncated": "model_truncated", "truncated-header": "model_truncated", "empty": "model_truncated"}
    if kind == "truncated":
        models.truncated_model(path)
    elif kind == "truncated-header":
        models.truncated_model(path, keep=0.001)
    elif kind == "empty":
        path.touch()
    elif kind == "page":
        models.not_a_gguf(path)
    elif kind == "folder":
        path.mkdir()
    worker = start(path)
    assert await worker.ended() == 3
    failure = worker.failure()
    assert failure.code == codes.get(kind, "model_unreadable")
    assert failure.what_to_do and str(tmp_path) not in failure.message


async def test_a_model_in_parts_is_served(start: Start, tmp_path: Path):
    worker = start(models.split_model(tmp_path)[0])
    await worker.until("idle")
    async with session_of(worker) as session:
        assert await complete(session, "A", max_tokens=12) == "BCDEFGHIJKLM"


async def test_a_port_in_use_is_said(start: Start, demo: WorkerProcess):
    await demo.until("idle")
    worker = start("demo", port=demo.port)
    assert await worker.ended() == 3
    assert worker.failure().code == "port_in_use" and str(demo.port) in worker.failure().message


async def test_an_address_of_another_machine_is_said(start: Start):
    worker = start("demo", host="192.0.2.1")
    assert await worker.ended() == 3
    assert worker.failure().code == "cannot_listen"


async def test_cuda_that_is_not_there_is_refused(start: Start):
    worker = start("demo", backend="cuda", devices=[1])
    assert await worker.ended() == 3
    assert worker.failure().code == "backend_unavailable" and "device 1" in worker.failure().message


async def test_a_context_that_does_not_fit_is_said(start: Start):
    worker = start("demo", ctx_per_slot=1_048_576, limit_memory=1_500_000_000)
    assert await worker.ended() == 3, worker.log.read_text()
    assert worker.failure().code == "out_of_memory"


async def test_a_reason_left_by_an_earlier_run_is_removed(start: Start, tmp_path: Path):
    (tmp_path / "worker-0").mkdir()
    (tmp_path / "worker-0" / FAILURE_FILE).parent.mkdir()
    (tmp_path / "worker-0" / FAILURE_FILE).write_text("{}")
    worker = start("demo")
    await worker.until("idle")
    assert not (worker.folder / FAILURE_FILE).exists()


async def test_a_wrong_order_is_no_known_failure(tmp_path: Path, start: Start):
    worker = start("demo", slots=0)
    assert await worker.ended() == 2
    assert "slots" in worker.log.read_text()


async def test_the_token_shows_nowhere(demo: WorkerProcess, http: aiohttp.ClientSession):
    await complete(http, "A", max_tokens=1)
    process = Path("/proc") / str(demo.process.pid)
    for source in (process / "cmdline", process / "environ", demo.log):
        assert TOKEN.encode() not in source.read_bytes()
    assert demo.token_pipe not in {str(descriptor.readlink()) for descriptor in (process / "fd").iterdir()}
