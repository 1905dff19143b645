"""Several clients at one worker whose slots are real: who waits for whom, and who leaves whom alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llama_orch.contract.inference import DEADLINE_HEADER
from llama_orch.demo_model import expected_completion, write_demo_model
from tests.bench.soak import soak
from tests.support.gguf import models
from tests.support.worker_process import (
    AUTH,
    Start,
    WorkerProcess,
    complete,
    events,
    metric,
    post,
    session_of,
    until_metric,
)

SLOTS = 4
BUSY = 'slots{state="busy"}'
# Far beyond what anything here takes.
LONG = 300.0


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.slow_model(tmp_path_factory.mktemp("models") / "slow.gguf", blocks=2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, slow_model: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(tmp_path_factory.mktemp("worker"), slow_model, slots=SLOTS, ctx_per_slot=4096)
    yield worker
    worker.kill()


@pytest.fixture
async def http(shared: WorkerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """A session at the worker that all tests share; what a test leaves behind must be gone soon."""
    await shared.until("idle", "busy")
    async with session_of(shared) as session:
        await until_metric(session, BUSY, 0)
        yield session
    async with session_of(shared) as session:
        await until_metric(session, BUSY, 0)
        await until_metric(session, "queued_requests", 0)


@pytest.fixture
def start(tmp_path: Path, slow_model: Path) -> Iterator[Start]:
    started: list[WorkerProcess] = []

    def one(**order: Any) -> WorkerProcess:
        started.append(WorkerProcess(tmp_path / f"worker-{len(started)}", slow_model, **{"slots": SLOTS, **order}))
        return started[-1]

    yield one
    for worker in started:
        worker.kill()


class Reader:
    """One client that streams a completion and notes when each part of its text came."""

    def __init__(self, session: aiohttp.ClientSession, prompt: str, max_tokens: int, **headers: str) -> None:
        self.text = ""
        self.times: list[float] = []
        self.error: dict[str, Any] | None = None
        self.asked = time.monotonic()
        self._began = asyncio.Event()
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        self.task = asyncio.create_task(self._read(session, body, headers))

    async def _read(self, session: aiohttp.ClientSession, body: dict[str, Any], headers: dict[str, str]) -> None:
        async with session.post("/v1/completions", json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            # An answer that breaks off is cut after its error.
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async for event in events(answer):
                    if event == "[DONE]":
                        return
                    data = json.loads(event)
                    if "error" in data:
                        self.error = data["error"]
                    elif text := data["choices"][0]["text"]:
                        self.text += text
                        self.times.append(time.monotonic())
                        self._began.set()

    async def began(self) -> float:
        """When the first token came."""
        async with asyncio.timeout(LONG):
            await self._began.wait()
        return self.times[0]

    async def whole(self) -> str:
        async with asyncio.timeout(LONG):
            await self.task
        return self.text

    async def leave(self) -> float:
        """Close the connection, and say when."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        return time.monotonic()

    def gaps(self) -> list[float]:
        return [after - before for before, after in pairwise(self.times)]


async def test_as_many_as_there_are_slots_stream_at_the_same_time(http: aiohttp.ClientSession):
    prompts = ["A", "x", "7", "hello G"]
    readers = [Reader(http, prompt, 30) for prompt in prompts]
    assert [await reader.whole() for reader in readers] == [expected_completion(prompt[-1], 30) for prompt in prompts]
    # Each had its first token long before any had its last.
    assert max(reader.times[2] for reader in readers) < min(reader.times[-3] for reader in readers)
    moments = sorted((moment, number) for number, reader in enumerate(readers) for moment in reader.times)
    turns = sum(one[1] != other[1] for one, other in pairwise(moments))
    assert turns > len(moments) // 2, "they come in turns and not one answer after another"


async def test_a_fifth_waits_and_begins_as_soon_as_a_slot_is_free(http: aiohttp.ClientSession):
    readers = [Reader(http, "A", 600) for _ in range(SLOTS - 1)]
    short = Reader(http, "B", 25)
    for reader in (*readers, short):
        await reader.began()
    fifth = Reader(http, "x", 5)
    await until_metric(http, "queued_requests", 1)
    assert (await metric(http, BUSY)) == SLOTS
    assert await short.whole() == expected_completion("B", 25)
    began = await fifth.began()
    assert began > short.times[-1] - 0.01
    usual = statistics.median(gap for reader in readers for gap in reader.gaps())
    assert began - short.times[-1] < 10 * usual
    assert await fifth.whole() == "yzabc"
    assert not any(reader.task.done() for reader in readers), "none of the others had to end for it"
    for reader in readers:
        await reader.leave()


async def test_who_leaves_amid_an_answer_frees_the_slot_within_a_step(http: aiohttp.ClientSession):
    readers = [Reader(http, "A", 1000) for _ in range(SLOTS)]
    for reader in readers:
        await reader.began()
    waiting = Reader(http, "x", 3)
    await until_metric(http, "queued_requests", 1)
    generated = await metric(http, "generated_tokens_total")
    steps = len(readers[1].times)
    left = await readers[0].leave()
    began = await waiting.began()
    usual = statistics.median(readers[1].gaps())
    assert began - left < 10 * usual
    # What the others got meanwhile is a clock that no busy machine disturbs: they had to make few steps.
    between = sum(left < moment < began for moment in readers[1].times[steps:])
    assert between <= 5
    await waiting.whole()
    await until_metric(http, BUSY, SLOTS - 1)
    assert await metric(http, "generated_tokens_total") - generated < 100, "it does not go on to its 1000 tokens"
    for number, reader in enumerate(readers[1:], 1):
        await reader.leave()
        await until_metric(http, BUSY, SLOTS - 1 - number)


async def test_a_long_prompt_stops_nobody_for_long(http: aiohttp.ClientSession):
    running = Reader(http, "A", 1000)
    await running.began()
    # As long as twenty of its tokens take.
    assert len(await complete(http, "B", max_tokens=20)) == 20
    usual = statistics.median(running.gaps())
    before = len(running.times)
    # As many tokens, none of which any slot holds.
    long = Reader(http, "1234567 " * 450 + "A", 3)
    asked = long.asked
    began = await long.began()
    meanwhile = [moment for moment in running.times if asked < moment < began]
    assert began - asked > 4 * usual, "the prompt was not long enough to show anything"
    # Read in the largest steps that there are, it would take seven.
    assert len(meanwhile) >= 11, "the other one went on while the prompt was read"
    assert max(running.gaps()[before - 1 :]) < (began - asked) / 2
    assert await long.whole() == "BCD"
    await running.leave()


async def test_a_full_queue_sends_away_with_a_time_to_come_again(http: aiohttp.ClientSession, shared: WorkerProcess):
    limit = 4 * SLOTS
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(shared.url, headers=AUTH, connector=connector) as many:
        readers = [Reader(many, "A", 1000) for _ in range(SLOTS + limit)]
        await until_metric(http, "queued_requests", limit)
        async with http.post("/v1/completions", json={"prompt": "A"}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (429, "busy")
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
        # Several answers are taken in together or not at all.
        await readers[-1].leave()
        await until_metric(http, "queued_requests", limit - 1)
        assert (await post(http, "/v1/completions", prompt="A", n=2))[0] == 429
        for reader in readers:
            await reader.leave()
        await until_metric(http, "queued_requests", 0)


async def test_a_deadline_ends_an_answer_that_has_begun_with_an_error(http: aiohttp.ClientSession):
    ended = await metric(http, 'answers_total{outcome="deadline"}')
    reader = Reader(http, "A", 3000, **{DEADLINE_HEADER: "0.5"})
    text = await reader.whole()
    assert text and expected_completion("A", 3000).startswith(text)
    assert reader.error is not None and reader.error["code"] == "deadline_exceeded"
    assert time.monotonic() - reader.asked < 5
    await until_metric(http, BUSY, 0)
    async with http.post("/v1/completions", json={"prompt": "A"}, headers={DEADLINE_HEADER: "0.3"}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (504, "deadline_exceeded")
    await until_metric(http, BUSY, 0)
    assert await metric(http, 'answers_total{outcome="deadline"}') == ended + 2
    async with http.post(
        "/v1/completions", json={"prompt": "A", "max_tokens": 3}, headers={DEADLINE_HEADER: "30"}
    ) as answer:
        assert (await answer.json())["choices"][0]["text"] == "BCD"


async def test_a_deadline_that_passes_in_the_queue_is_a_504_also_for_a_stream(http: aiohttp.ClientSession):
    readers = [Reader(http, "A", 1000) for _ in range(SLOTS)]
    for reader in readers:
        await reader.began()
    body = {"prompt": "A", "stream": True}
    async with http.post("/v1/completions", json=body, headers={DEADLINE_HEADER: "0.2"}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (504, "deadline_exceeded")
    await until_metric(http, "queued_requests", 0)
    for reader in readers:
        await reader.leave()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e9", ""])
async def test_a_deadline_that_is_none_is_refused(http: aiohttp.ClientSession, value: str):
    async with http.post("/v1/completions", json={"prompt": "A"}, headers={DEADLINE_HEADER: value}) as answer:
        assert answer.status == 400 and DEADLINE_HEADER in (await answer.json())["error"]["message"]


async def test_health_answers_quickly_while_all_slots_are_busy(http: aiohttp.ClientSession):
    readers = [Reader(http, "A", 1000) for _ in range(SLOTS)]
    for reader in readers:
        await reader.began()
    seconds: list[float] = []
    for _ in range(20):
        begun = time.monotonic()
        async with http.get("/health") as answer:
            health = await answer.json()
        seconds.append(time.monotonic() - begun)
        assert (health["status"], health["slots_busy"]) == ("busy", SLOTS)
        assert health["tokens_per_second"] > 0
    assert statistics.median(seconds) < 0.05
    for reader in readers:
        await reader.leave()


async def test_what_prompts_share_is_read_once(http: aiohttp.ClientSession):
    beginning = "what all of them begin with, and nobody else does: " * 4
    reused = await metric(http, "reused_tokens_total")
    bodies = [{"prompt": beginning + end, "max_tokens": 4} for end in ("A", "x", "5", "G")]
    answers = await asyncio.gather(*(post(http, "/v1/completions", **body) for body in bodies))
    assert [answer["choices"][0]["text"] for _, answer in answers] == ["BCDE", "yzab", "6789", "HIJK"]
    cached = sorted(answer["usage"]["prompt_tokens_details"]["cached_tokens"] for _, answer in answers)
    assert cached[0] < 10 and all(count >= len(beginning) for count in cached[1:])
    _, again = await post(http, "/v1/completions", **bodies[0])
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == again["usage"]["prompt_tokens"] - 1
    assert await metric(http, "reused_tokens_total") - reused >= 4 * len(beginning)


def connect(worker: WorkerProcess, sent: bytes) -> socket.socket:
    """A connection that has sent this much, with as little room for an answer as the system allows."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    one.connect(("127.0.0.1", worker.port))
    one.sendall(sent)
    return one


def raw_request(body: dict[str, Any], *, length: int | None = None) -> bytes:
    content = json.dumps(body).encode()
    head = [
        "POST /v1/completions HTTP/1.1", "Host: w", *(f"{name}: {value}" for name, value in AUTH.items()),
        "Content-Type: application/json", f"Content-Length: {length or len(content)}",
    ]  # fmt: skip
    return "\r\n".join([*head, "", ""]).encode() + content


async def test_who_reads_slowly_holds_nobody_up(http: aiohttp.ClientSession, shared: WorkerProcess):
    sockets = [connect(shared, raw_request({"prompt": "A", "max_tokens": 60, "stream": True})) for _ in range(SLOTS)]
    try:
        await until_metric(http, BUSY, SLOTS)
        # One byte a second is all that they read; their slots are free when the engine is done with them.
        reading = asyncio.create_task(asyncio.to_thread(_read_slowly, sockets))
        answers = [complete(http, "A", max_tokens=5) for _ in range(2 * SLOTS)]
        async with asyncio.timeout(LONG):
            assert await asyncio.gather(*answers) == ["BCDEF"] * 2 * SLOTS
        await until_metric(http, BUSY, 0)
        assert not reading.done()
    finally:
        for one in sockets:
            one.close()
    await asyncio.gather(reading, return_exceptions=True)


def _read_slowly(sockets: list[socket.socket]) -> None:
    for _ in range(60):
        for one in sockets:
            one.recv(1)
        time.sleep(1)


async def test_who_sends_half_a_request_holds_nobody_up(http: aiohttp.ClientSession, shared: WorkerProcess):
    halves = [
        raw_request({"prompt": "A"}, length=500), raw_request({"prompt": "A"})[:60], b"POST /v1/comp", b"\r\n", b"",
    ]  # fmt: skip
    sockets = [connect(shared, half) for half in halves for _ in range(10)]
    try:
        async with asyncio.timeout(LONG):
            assert await asyncio.gather(*(complete(http, "A", max_tokens=5) for _ in range(SLOTS))) == ["BCDEF"] * SLOTS
        assert await metric(http, BUSY) == 0
    finally:
        for one in sockets:
            one.close()


async def test_noise_is_no_request(http: aiohttp.ClientSession, shared: WorkerProcess):
    for noise in (b"\x16\x03\x01" + bytes(200), b"GET / HTTP/9.9\r\n\r\n", b"\xff" * 20_000, b"PUT * HTTP/1.1\r\n\r\n"):
        with contextlib.suppress(OSError), connect(shared, noise) as one:
            one.settimeout(1)
            answer = await asyncio.to_thread(one.recv, 100)
            assert b" 500 " not in answer
    assert await complete(http, "A", max_tokens=3) == "BCD"


async def test_draining_lets_all_slots_finish(start: Start):
    worker = start(ctx_per_slot=512)
    await worker.until("idle")
    async with session_of(worker) as session:
        readers = [Reader(session, "A", 30) for _ in range(SLOTS)]
        for reader in readers:
            await reader.began()
        queued = asyncio.create_task(post(session, "/v1/completions", prompt="A"))
        await until_metric(session, "queued_requests", 1)
        worker.process.send_signal(signal.SIGUSR1)
        assert (await queued)[0] == 503
        assert [await reader.whole() for reader in readers] == [expected_completion("A", 30)] * SLOTS
        assert all(reader.error is None for reader in readers)
    assert await worker.ended() == 0


async def test_many_requests_of_random_shape_leave_nothing_behind(tmp_path: Path):
    worker = WorkerProcess(tmp_path / "worker", write_demo_model(tmp_path / "demo.gguf"), slots=SLOTS, ctx_per_slot=512)
    try:
        outcome = await soak(worker, 300)
    finally:
        worker.kill()
    assert not outcome.wrong
    assert outcome.cut > 50 and sum(outcome.by_result.values()) == 300
