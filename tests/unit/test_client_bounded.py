from __future__ import annotations

import asyncio

import aiohttp
import pytest

from llama_orch.client.bounded import read_whole


async def _answered(*segments: bytes, most_bytes: int = 100) -> bytes:
    """What is read of an answer that comes in these pieces, each read before the next is sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for segment in segments:
            writer.write(segment)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as got:
        return await read_whole(got, most_bytes)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


async def test_an_answer_in_pieces_is_read_whole():
    assert await _answered(HEAD, b"01234", b"56789") == b"0123456789"
    assert await _answered(HEAD + b"0", *(b"%d" % n for n in range(1, 10)), most_bytes=10) == b"0123456789"


async def test_one_that_is_too_large_or_ends_early_is_refused():
    with pytest.raises(aiohttp.ClientPayloadError, match="larger than 9 bytes"):
        await _answered(HEAD, b"01234", b"56789", most_bytes=9)
    with pytest.raises(aiohttp.ClientPayloadError):
        await _answered(HEAD, b"01234")
