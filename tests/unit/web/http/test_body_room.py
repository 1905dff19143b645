"""Large bodies: taken where a service says so, and never many at one time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from sanic import Request

from llama_orch.base.tokens import Token
from llama_orch.contract import operations as ops
from llama_orch.contract.common import QueenHealth
from llama_orch.contract.errors import Busy
from llama_orch.contract.inference import TokenizeRequest, Tokens
from llama_orch.contract.operations import METRICS
from llama_orch.web.app import Routes, create_app
from llama_orch.web.http.body_room import LARGEST_BODIES, SMALL_BYTES, BodyRoom
from tests.support.serving import serving

TOKEN = "a-token-of-enough-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
LARGEST = 4 * SMALL_BYTES
LARGE_BODY = b'{"prompt": "' + b"x" * (3 * SMALL_BYTES) + b'"}'


@pytest.fixture
async def url() -> AsyncIterator[str]:
    routes = Routes((ops.QUEEN_HEALTH, ops.TOKENIZE, METRICS))

    @routes.handle(ops.QUEEN_HEALTH)
    async def health(_: Request) -> QueenHealth:
        return QueenHealth(version="0.1.0")

    @routes.handle(ops.TOKENIZE)
    async def tokenize(request: Request, body: TokenizeRequest) -> Tokens:
        assert request.body == b"", "it is in memory once"
        return Tokens(tokens=[], count=len(body.prompt or ""), context_per_slot=1)

    app = create_app(
        "large", "worker", routes, token=Token(TOKEN), registry=CollectorRegistry(), max_body_bytes=LARGEST
    )
    async with serving(app) as address:
        yield address


async def announce(url: str, head: str) -> asyncio.StreamWriter:
    """A connection whose client says what it will send, and sends nothing."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(f"POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{head}\r\n\r\n".encode())
    await writer.drain()
    return writer


async def answers(url: str, body: bytes = LARGE_BODY, headers: dict[str, str] = AUTH) -> tuple[int, dict[str, str]]:
    async with (
        aiohttp.ClientSession(url) as http,
        http.post("/v1/tokenize", data=body, headers=headers) as answer,
    ):
        return answer.status, dict(answer.headers)


async def until(url: str, status: int) -> dict[str, str]:
    """The answer's headers once it has this status: connections come and go beside us."""
    async with asyncio.timeout(10):
        while True:
            found, headers = await answers(url)
            if found == status:
                return headers


async def test_a_body_may_be_as_large_as_the_service_says(url: str):
    for _ in range(2 * LARGEST_BODIES):
        assert (await answers(url))[0] == 200
    async with aiohttp.ClientSession(url) as http:
        async with http.post("/v1/tokenize", data=b" " * (LARGEST + 1), headers=AUTH) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (413, "payload_too_large") and "at most 4 MiB" in error["message"]


async def test_a_large_body_of_small_parts_is_refused_unread(url: str):
    body = b'{"prompt": "x", "more": [' + b"[]," * SMALL_BYTES + b"1]}"
    async with aiohttp.ClientSession(url) as http, http.post("/v1/tokenize", data=body, headers=AUTH) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (400, "invalid_request") and "send less" in error["message"]


@pytest.mark.parametrize("head", [f"Content-Length: {LARGEST}", "Transfer-Encoding: chunked"])
async def test_too_many_large_bodies_at_once_are_sent_away(url: str, head: str):
    waiting = [await announce(url, head) for _ in range(LARGEST_BODIES)]
    headers = await until(url, 429)
    assert int(headers["Retry-After"]) >= 1
    # Small ones are none of them.
    assert (await answers(url, b'{"prompt": "x"}'))[0] == 200
    waiting[0].close()
    await until(url, 200)
    for writer in waiting:
        writer.close()


async def test_who_has_no_token_sends_nothing_large(url: str):
    async with aiohttp.ClientSession(url) as http:
        async with http.post("/v1/tokenize", data=LARGE_BODY) as answer:
            assert answer.status == 401
        async with http.request("GET", "/health", data=LARGE_BODY) as answer:
            assert answer.status == 413
        async with http.request("GET", "/health", data=b"x") as answer:
            assert answer.status == 200


def test_room_is_given_back_once():
    room = BodyRoom(LARGEST)
    for number in range(LARGEST_BODIES):
        room.take(number, str(LARGEST), chunked=False)
    with pytest.raises(Busy):
        room.take("another", str(LARGEST), chunked=False)
    room.take("another", str(SMALL_BYTES), chunked=False)
    room.take("another", str(LARGEST + 1), chunked=False)
    room.take("another", None, chunked=False)
    for _ in range(2):
        room.give_back(0)
    room.take("another", str(LARGEST), chunked=False)
    with pytest.raises(Busy):
        room.take("one more", None, chunked=True)
