"""What anybody on the network can do to a queen, a hive and a worker without a token.

Before: 200 connections with a body each cost 203 MB and stayed for up to 900 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_orch.demo_model import write_demo_model
from tests.support.hives import API_TOKEN, INFERENCE_TOKEN, HiveProcess
from tests.support.queen_process import QueenProcess

MIB = 2**20


@dataclass(frozen=True)
class Attacked:
    """A running service, and a call that its owner makes."""

    name: str
    port: int
    pid: int
    token: str
    path: str

    def resident(self) -> int:
        """Bytes of memory that it has."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """What it has used of the processor."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def ask(self, head: str, body: bytes = b"") -> bytes:
        """What it answers to this head, until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.encode("latin-1") + b"\r\n\r\n" + body)
            return await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.close()

    async def owners_call(self) -> float:
        """Seconds that a call with the token takes."""
        began = time.monotonic()
        answer = await self.ask(
            f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\nConnection: close"
        )
        assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
        return time.monotonic() - began


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Attacked]]:
    folder = tmp_path_factory.mktemp("services")
    (folder / "hive").mkdir()
    (folder / "queen").mkdir()
    hive, queen = HiveProcess(folder / "hive"), QueenProcess(folder / "queen")

    async def started() -> dict[str, Attacked]:
        await hive.start()
        worker = await hive.idle(f"file:{write_demo_model(folder / 'demo.gguf')}", slots=1)
        assert hive.agent is not None and queen._process is not None
        port = int(worker["url"].rpartition(":")[2])
        found = (
            Attacked("queen", queen.port, queen._process.pid, queen.token, "/api/v1/nodes"),
            Attacked("hive", hive.port, hive.agent.pid, API_TOKEN, "/api/v1/hive"),
            Attacked("worker", port, worker["pid"], INFERENCE_TOKEN, "/v1/models"),
        )
        return {one.name: one for one in found}

    try:
        queen.start()
        yield asyncio.run(started())
    finally:
        queen.end()
        asyncio.run(hive.close())


@pytest.fixture(params=["queen", "hive", "worker"])
def attacked(request: pytest.FixtureRequest, services: dict[str, Attacked]) -> Attacked:
    return services[request.param]


@contextlib.asynccontextmanager
async def crowd(attacked: Attacked, count: int, send: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """So many connections, each of which sent this much and waits."""
    opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        for _ in range(count):
            opened.append(await asyncio.open_connection("127.0.0.1", attacked.port))
            opened[-1][1].write(send)
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def closed(reader: asyncio.StreamReader, within: float) -> bytes:
    """What came until the service closed, which it must within so many seconds."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), within)
    return b""


async def test_bodies_of_strangers_are_neither_read_nor_waited_for(attacked: Attacked):
    await attacked.owners_call()
    before = attacked.resident()
    head = b"POST /api/v1/nodes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n"
    async with crowd(attacked, 200, head + b" " * 1_000_000) as readers:
        assert await attacked.owners_call() < 5
        answers = await asyncio.gather(*(closed(reader, 20) for reader in readers))
        grown = attacked.resident() - before
    assert grown < 40 * MIB
    assert sum(answer.startswith(b"HTTP/1.1 401") for answer in answers) > 190


async def test_connections_that_say_nothing_are_few_and_end(attacked: Attacked):
    await attacked.owners_call()
    before = attacked.resident()
    async with crowd(attacked, 600, b"GET /health HTTP/1.1\r\n") as readers:
        assert await attacked.owners_call() < 5
        # All but the last 256 are gone at once; those have ten seconds for their heads.
        await asyncio.gather(*(closed(reader, 5) for reader in readers[:300]))
        await asyncio.gather(*(closed(reader, 30) for reader in readers))
        grown = attacked.resident() - before
    assert grown < 40 * MIB
    assert await attacked.owners_call() < 5


async def test_a_head_that_drips_ends(attacked: Attacked):
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    writer.write(b"GET /health HTTP/1.1\r\n")

    async def drip() -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"X: y\r\n")
                await writer.drain()
                await asyncio.sleep(0.3)

    dripping = asyncio.create_task(drip())
    assert (await closed(reader, 30)).startswith(b"HTTP/1.1 408")
    dripping.cancel()
    writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe\xe9", 401),
        ("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5", 400),
        ("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5", 400),
        ("GET {path} HTTP/1.1\r\nHost: localhost\r\nX: " + "y" * 20_000, 413),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example", 403),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example", 403),
        ("POST {path} HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\nContent-Length: 2", 401),
        ("OPTIONS {path} HTTP/1.1\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: POST", 403),
        ("GET {path} HTTP/1.1\r\nHost: localhost\r\nx-api-key: a-wrong-token-of-length", 401),
    ],
    ids=lambda value: str(value)[:70].replace("\r\n", " "),
)
async def test_a_head_that_is_not_to_be_answered_is_refused_at_once(attacked: Attacked, head: str, status: int):
    answer = await attacked.ask(head.replace("{path}", attacked.path) + "\r\nConnection: close")
    assert answer.startswith(f"HTTP/1.1 {status}".encode()), answer[:200]
    assert b"Traceback" not in answer
    assert b"functools" not in answer


async def test_scrapers_leave_most_of_the_time_to_others(attacked: Attacked):
    ends = time.monotonic() + 4

    async def scrape() -> None:
        while time.monotonic() < ends:
            answer = await attacked.ask("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close")
            assert answer.startswith(b"HTTP/1.1 200")

    before, began = attacked.cpu_seconds(), time.monotonic()
    calls: list[float] = []

    async def calling() -> None:
        while time.monotonic() < ends:
            calls.append(await attacked.owners_call())
            await asyncio.sleep(0.1)

    await asyncio.gather(calling(), *(scrape() for _ in range(16)))
    used = (attacked.cpu_seconds() - before) / (time.monotonic() - began)
    assert used < 0.7, f"{used:.0%} of a core for metrics"
    assert sorted(calls)[len(calls) // 2] < 0.5


@pytest.mark.parametrize("missing", ["api_token_file", "inference_token_file"])
def test_a_hive_without_a_token_does_not_start_on_loopback_either(tmp_path: Path, missing: str):
    hive = HiveProcess(tmp_path)
    settings = {name: value for name, value in hive.settings.items() if name != missing}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    ended = subprocess.run(
        [sys.executable, "-m", "llama_orch.hive", *flags], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert f"'{missing}' is not set: name a file" in ended.stderr
