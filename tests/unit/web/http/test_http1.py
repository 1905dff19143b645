"""What a client may send and when, byte by byte, on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from llama_orch.web.http import http1
from tests.support.serving import serving
from tests.unit.web.test_app import TOKEN, an_app

NO_TOKEN = "Host: localhost\r\n"
WITH_TOKEN = f"{NO_TOKEN}Authorization: Bearer {TOKEN}\r\n"
POST = "POST /api/v1/nodes HTTP/1.1\r\n"
BODY = '{"node_name": "a", "ssh_host": "h"}'
CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"


class Client:
    """One connection to the service under test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: str | bytes) -> None:
        self.writer.write(data if isinstance(data, bytes) else data.encode())
        await self.writer.drain()

    async def rest(self) -> tuple[int, str]:
        """The last answer's status and error code, once the service has closed."""
        answer = await asyncio.wait_for(self.reader.read(), 5)
        head, _, body = answer.rpartition(b"\r\n\r\n")
        status = int(head.rpartition(b"HTTP/1.1 ")[2].split()[0]) if head else 0
        return status, json.loads(body).get("error", {}).get("code", "") if body else ""


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving(an_app()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        yield Client(reader, writer)
        writer.close()


@pytest.mark.parametrize("path", ["/api/v1/nodes", "/nowhere"])
@pytest.mark.parametrize("how", ["Content-Length: 1048576\r\n\r\n", f"Expect: 100-continue\r\n{CHUNKED}", CHUNKED])
async def test_who_has_no_token_is_sent_away_before_the_body_is_there(client: Client, path: str, how: str):
    await client.send(f"POST {path} HTTP/1.1\r\n{NO_TOKEN}{how}")
    assert await client.rest() == (401, "unauthorized")


async def test_what_is_sent_after_a_refusal_is_thrown_away_and_the_answer_arrives(client: Client):
    await client.send(f"{POST}{NO_TOKEN}Content-Length: 1048576\r\n\r\n" + " " * 300_000)
    await asyncio.sleep(0.05)
    await client.send(" " * 300_000)
    assert await client.rest() == (401, "unauthorized")


async def test_a_body_that_no_handler_takes_is_not_waited_for(client: Client):
    await client.send(f"PUT /api/v1/nodes HTTP/1.1\r\n{WITH_TOKEN}Content-Length: 1000\r\n\r\n")
    assert await client.rest() == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("head", "drip"),
    [("GET /health HTTP/1.1\r\n", "X-A: b\r\n"), (f"{POST}{WITH_TOKEN}Content-Length: 9999\r\n\r\n", " ")],
)
async def test_a_head_or_body_that_drips_has_a_deadline(
    client: Client, monkeypatch: pytest.MonkeyPatch, head: str, drip: str
):
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http1, "BODY_SECONDS", 0.3)
    await client.send(head)

    async def drips() -> None:
        while True:
            await asyncio.sleep(0.02)
            await client.send(drip)

    dripping = asyncio.create_task(drips())
    assert await client.rest() == (408, "request_timeout")
    dripping.cancel()


async def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.1)
    async with serving(an_app()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_a_slow_answer_is_not_cut_by_the_deadlines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(http1, "BODY_SECONDS", 0.1)

    async def slow() -> AsyncIterator[str]:
        await asyncio.sleep(0.4)
        yield "one"
        await asyncio.sleep(0.4)
        yield "two"

    async with serving(an_app(events=slow())) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"GET /api/v1/jobs/j/events HTTP/1.1\r\n{WITH_TOKEN}Connection: close\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"data: two\n\n\r\n0\r\n\r\n")
        writer.close()


@pytest.mark.parametrize(
    "rest",
    [
        f"Content-Length: +{len(BODY)}\r\n\r\n{BODY}",
        f"Content-Length: ٣٥\r\n\r\n{BODY}",
        f"Content-Length : {len(BODY)}\r\n\r\n{BODY}",
        f"Content-Length: {len(BODY)}\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
        f"Content-Length: {len(BODY)}\r\n{CHUNKED}0\r\n\r\n",
        f"X: a\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
        f"X: a\r\n b: c\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
        f"X: \0\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
        f"Host: other\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
        f"{CHUNKED}-1\r\n{BODY}\r\n0\r\n\r\n",
        f"{CHUNKED}0x23\r\n{BODY}\r\n0\r\n\r\n",
        f"{CHUNKED}+23\r\n{BODY}\r\n0\r\n\r\n",
        f"{CHUNKED}23\r\n{BODY}XX0\r\n\r\n",
        f"{CHUNKED}23\r\n{BODY}\r\n0\r\nX: trailer\r\n\r\n",
    ],
    ids=repr,
)
async def test_what_others_might_read_differently_is_refused(client: Client, rest: str):
    await client.send(POST + WITH_TOKEN + rest)
    assert await client.rest() == (400, "invalid_request")


@pytest.mark.parametrize(
    "rest", [f"Content-Length: {len(BODY)}\r\n\r\n{BODY}", f"{CHUNKED}23;a=b\r\n{BODY}\r\n0\r\n\r\n"]
)
async def test_two_bodies_on_one_connection_are_taken(client: Client, rest: str):
    for last in ("", "Connection: close\r\n"):
        await client.send(POST + WITH_TOKEN + last + rest)
    answer = await asyncio.wait_for(client.reader.read(), 5)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_a_token_that_is_no_ascii_is_a_wrong_one(client: Client):
    await client.send(b"GET /api/v1/nodes/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe" + b"a" * 20)
    await client.send("\r\n\r\n")
    assert await client.rest() == (401, "unauthorized")


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http1, "STALLED_SECONDS", 0.2)
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 1_000_000
        finally:
            ended.set()

    async with serving(an_app(events=endless())) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), limit=1024)
        writer.write(f"GET /api/v1/jobs/j/events HTTP/1.1\r\n{WITH_TOKEN}\r\n".encode())
        await asyncio.wait_for(ended.wait(), 5)
        assert reader is not None
        writer.close()


@pytest.mark.parametrize("connection", ["", "Connection: keep-alive\r\n"])
async def test_a_client_of_http_1_0_gets_a_stream_without_chunks_that_ends_by_close(connection: str):
    async def two() -> AsyncIterator[str]:
        yield "one"
        yield "two"

    async with serving(an_app(events=two())) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"GET /api/v1/jobs/j/events HTTP/1.0\r\n{WITH_TOKEN}{connection}\r\n".encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        writer.close()
    assert body == b"data: one\n\ndata: two\n\n"
    lines = head.lower().split(b"\r\n")
    assert b"connection: close" in lines and b"content-type: text/event-stream" in lines
    assert not [line for line in lines if line.startswith((b"transfer-encoding", b"content-length"))]


async def test_a_stream_of_http_1_0_that_breaks_says_so_before_it_ends():
    async def one_then_fail() -> AsyncIterator[str]:
        yield "one"
        raise RuntimeError

    async with serving(an_app(events=one_then_fail())) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"GET /api/v1/jobs/j/events HTTP/1.0\r\n{WITH_TOKEN}\r\n".encode())
        body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")[2]
        writer.close()
    assert body.startswith(b"data: one\n\nevent: error\ndata: {")


async def test_the_head_of_a_stream_for_http_1_0(client: Client):
    async def one() -> AsyncIterator[str]:
        yield "one"

    async with serving(an_app(events=one())) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"HEAD /api/v1/jobs/j/events HTTP/1.0\r\n{WITH_TOKEN}\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\n")


async def test_http_1_0_keeps_its_connection_where_it_asks_for_that(client: Client):
    await client.send(f"GET /health HTTP/1.0\r\n{NO_TOKEN}Connection: keep-alive\r\n\r\n")
    await client.send("GET /health HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(client.reader.read(), 5)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_http_1_0_is_told_nothing_before_its_answer_and_has_no_chunks(client: Client):
    length = f"Expect: 100-continue\r\nContent-Length: {len(BODY)}\r\n\r\n"
    await client.send(f"POST /api/v1/nodes HTTP/1.0\r\n{WITH_TOKEN}{length}{BODY}")
    assert (await asyncio.wait_for(client.reader.read(), 5)).startswith(b"HTTP/1.1 200 OK")


async def test_chunks_of_http_1_0_are_refused(client: Client):
    await client.send(f"POST /api/v1/nodes HTTP/1.0\r\n{WITH_TOKEN}{CHUNKED}23\r\n{BODY}\r\n0\r\n\r\n")
    assert await client.rest() == (400, "invalid_request")
