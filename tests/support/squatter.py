"""A stranger on somebody else's port: takes every connection, keeps all that arrives, answers what suits."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field


@dataclass
class Squatter:
    """One listener on loopback; `received` is all bytes that came to it."""

    url: str = ""
    received: bytearray = field(default_factory=bytearray)

    @property
    def requests(self) -> int:
        """How many requests came."""
        return self.received.count(b" HTTP/1.1\r\n")


@contextlib.asynccontextmanager
async def squatting(
    answer: Callable[[str], object], *, status: str = "200 OK", port: int = 0
) -> AsyncIterator[Squatter]:
    """A squatter that answers each request, by its target, with this JSON."""
    squatter = Squatter()
    connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                squatter.received += head
                body = json.dumps(answer(head.split()[1].decode())).encode()
                lines = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(lines.encode() + body)
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    squatter.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield squatter
    finally:
        server.close()
        for writer in connections:
            writer.close()
        await server.wait_closed()
