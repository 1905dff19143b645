"""What a chat client, and a model's own template, can do to a worker: schemas, grammars, texts, templates.

Each attack comes from an address of its own beside a client that only wants an answer. Times are bounds that a slow
machine keeps many times over; without the mend these attacks take minutes, gigabytes or the process.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from llama_orch import demo_model
from llama_orch.demo_model import expected_completion, write_demo_model
from llama_orch.worker.llama import deep_stack
from tests.support.gguf.models import LONGEST_TOKEN, bpe_model
from tests.support.worker_process import AUTH, WorkerProcess
from tests.unit.worker.grammar.test_constraint import multiplying

SOON = 20.0
CHAT = {"messages": [{"role": "user", "content": "A"}], "max_tokens": 4, "temperature": 0}
T = TypeVar("T")


class Client:
    """A client with an address of its own."""

    def __init__(self, worker: WorkerProcess, address: str) -> None:
        self._url = worker.url
        connector = aiohttp.TCPConnector(local_addr=(address, 0), limit=0, force_close=True)
        self.http = aiohttp.ClientSession(headers=AUTH, connector=connector, timeout=aiohttp.ClientTimeout(300))

    async def ask(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        async with self.http.post(f"{self._url}/v1/{path}", json=body) as answer:
            return answer.status, await answer.json()

    async def gets_its_answer(self, **more: Any) -> None:
        body = {"prompt": "z", "max_tokens": 5, "temperature": 0}
        status, answer = await soon(self.ask("completions", **body, **more))
        assert status == 200, answer


async def soon(work: Awaitable[T]) -> T:
    async with asyncio.timeout(SOON):
        return await work


def peak_megabytes(worker: WorkerProcess) -> float:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("demo")
    worker = WorkerProcess(folder, write_demo_model(folder / "demo.gguf"), slots=4, ctx_per_slot=512)
    yield worker
    worker.kill()


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("bpe")
    worker = WorkerProcess(folder, bpe_model(folder / "m.gguf", "gpt-4o"), slots=4, ctx_per_slot=2048)
    yield worker
    worker.kill()


@pytest.fixture
async def clients(demo: WorkerProcess) -> AsyncIterator[tuple[Client, Client]]:
    async for pair in two_clients(demo):
        yield pair


@pytest.fixture
async def bpe_clients(bpe: WorkerProcess) -> AsyncIterator[tuple[Client, Client]]:
    async for pair in two_clients(bpe):
        yield pair


async def two_clients(worker: WorkerProcess) -> AsyncIterator[tuple[Client, Client]]:
    """The attacker and the other one."""
    await worker.until("idle")
    pair = Client(worker, "127.0.0.66"), Client(worker, "127.0.0.2")
    yield pair
    for client in pair:
        await client.http.close()
    assert worker.process.poll() is None, worker.log.read_text()[-4000:]
    assert (await worker.until("idle", "busy", "overloaded"))["status"] != "overloaded"


# --- schemas and grammars


async def test_schemas_that_multiply_leave_others_their_answers(clients: tuple[Client, Client], demo: WorkerProcess):
    """Six of them of 3.5 kB took all threads that read requests, for good."""
    attacker, other = clients
    before = peak_megabytes(demo)
    schema = {"type": "json_schema", "json_schema": {"schema": multiplying(30)}}
    attack = [asyncio.create_task(attacker.ask("chat/completions", **CHAT, response_format=schema)) for _ in range(30)]
    await asyncio.sleep(0.1)
    wanted = {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}
    await other.gets_its_answer()
    await other.gets_its_answer(response_format=wanted)
    for status, answer in await soon(asyncio.gather(*attack)):
        assert (status, answer["error"]["code"]) == (400, "schema_unsupported"), answer
        assert "steps of work" in answer["error"]["message"]
    assert peak_megabytes(demo) - before < 100


async def test_nothing_goes_on_for_clients_that_have_left(clients: tuple[Client, Client]):
    attacker, other = clients
    tool = {"type": "function", "function": {"name": "f", "parameters": multiplying(13)}}
    tools = [{**tool, "function": {**tool["function"], "name": f"f{number}"}} for number in range(100)]
    attack = [asyncio.create_task(attacker.ask("chat/completions", **CHAT, tools=tools)) for _ in range(20)]
    await asyncio.sleep(0.5)
    for one in attack:
        one.cancel()
    await asyncio.gather(*attack, return_exceptions=True)
    await other.gets_its_answer(response_format={"type": "json_object"})


@pytest.mark.parametrize(
    "noise", ["#" * 60_000, "a-" * 30_000, " " * 60_000, '"' + "\\" * 60_000, "[" * 60_000, "(" * 60_000]
)
async def test_a_grammar_of_noise_is_refused_at_once(clients: tuple[Client, Client], noise: str):
    """Fifty `#` behind a name held the interpreter for minutes, until the hive ended the worker."""
    attacker, other = clients
    attack = asyncio.create_task(attacker.ask("completions", prompt="x", grammar=f"root ::= a\nb{noise}"))
    await other.gets_its_answer()
    status, answer = await soon(attack)
    assert (status, answer["error"]["code"]) == (400, "wrong_grammar")


@pytest.mark.parametrize("form", ["regex", "recursion", "schema"])
async def test_an_ambiguous_grammar_ends_and_nobody_waits_for_it(
    bpe_clients: tuple[Client, Client], bpe: WorkerProcess, form: str
):
    """In 30 bytes: 2^40 readings of a token of 64 letters, or 2^64 of them to keep once it is drawn."""
    attacker, other = bpe_clients
    before = peak_megabytes(bpe)
    ambiguous: dict[str, Any] = {"grammar": 'root ::= ("a" | "a"){0,40} "b"'}
    if form == "schema":
        pattern = {"type": "string", "pattern": "^(a|a){0,40}b$"}
        ambiguous = {"response_format": {"type": "json_schema", "json_schema": {"schema": pattern}}}
    elif form == "recursion":
        _, told = await attacker.ask("tokenize", prompt="a" * LONGEST_TOKEN)
        ambiguous = {
            "grammar": 'root ::= "a" root "b" | "a" root "c" | "d"', "logit_bias": {str(told["tokens"][0]): 100},
        }  # fmt: skip
    body = {"prompt": "z", "max_tokens": 200, "temperature": 0, **ambiguous}
    attack = [asyncio.create_task(attacker.ask("completions", **body)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await other.gets_its_answer()
    for status, answer in await soon(asyncio.gather(*attack)):
        assert status == 400 and "too ambiguous" in answer["error"]["message"], answer
    assert peak_megabytes(bpe) - before < 200


# --- texts


@pytest.mark.parametrize("kind", ["gpt-4o", "tekken", "deepseek-llm", "deepseek-v3", "llama4", "exaone-moe"])
async def test_a_run_of_one_letter_ends_no_worker(tmp_path: Path, kind: str):
    """30 kB of one letter overflowed the stack and ended the process."""
    worker = WorkerProcess(tmp_path, bpe_model(tmp_path / "m.gguf", kind), slots=2, ctx_per_slot=512)
    try:
        await worker.until("idle")
        attacker, other = Client(worker, "127.0.0.66"), Client(worker, "127.0.0.2")
        before = peak_megabytes(worker)
        for run in ("b", " ", "!", "\n", "1", "ä"):
            text = run * 60_000
            status, answer = await soon(attacker.ask("tokenize", prompt=text))
            assert status == 200 and answer["count"] >= 60_000
            for path, body in (
                ("completions", {"prompt": text}),
                ("completions", {"prompt": ["x", text]}),
                ("chat/completions", {"messages": [{"role": "user", "content": text}]}),
            ):
                status, answer = await soon(attacker.ask(path, **body))
                assert (status, answer["error"]["code"]) == (400, "context_length_exceeded"), answer
            status, answer = await soon(attacker.ask("tokenize", prompt=run * (deep_stack.MOST_RUN + 1)))
            assert (status, answer["error"]["code"]) == (400, "text_refused"), answer
            assert answer["error"]["param"] == "prompt" and str(deep_stack.MOST_RUN) in answer["error"]["message"]
        await other.gets_its_answer(stop=["b" * 256])
        assert peak_megabytes(worker) - before < 300
        for client in (attacker, other):
            await client.http.close()
        assert worker.process.poll() is None
    finally:
        worker.kill()


# --- templates


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a'.ljust(3000000000) }}",
        "{{ messages[0].content | center(3000000000) }}",
        "{% set n = namespace(x='xxxxxxxx', l=[]) %}{% for a in range(18) %}{% set n.x = n.x + n.x %}{% endfor %}"
        "{% for a in range(9999) %}{% set n.l = n.l + [n.x.lower()] %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
async def test_a_template_takes_neither_memory_nor_time(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo_model, "CHAT_TEMPLATE", template)
    worker = WorkerProcess(tmp_path, write_demo_model(tmp_path / "m.gguf"), slots=2, ctx_per_slot=512)
    try:
        await worker.until("idle")
        client, other = Client(worker, "127.0.0.66"), Client(worker, "127.0.0.2")
        before = peak_megabytes(worker)
        attack = [asyncio.create_task(client.ask("chat/completions", **CHAT)) for _ in range(2)]
        await asyncio.sleep(0.05)
        status, answer = await soon(other.ask("completions", prompt="A", max_tokens=3, temperature=0))
        assert status == 200 and answer["choices"][0]["text"] == expected_completion("A", 3)
        for status, answer in await soon(asyncio.gather(*attack)):
            assert status == 400 and "chat template" in answer["error"]["message"], answer
        assert peak_megabytes(worker) - before < 400
        for one in (client, other):
            await one.http.close()
    finally:
        worker.kill()
