"""Reads an answer whole, and no larger than it may be: a network hands over whatever has come so far."""

from __future__ import annotations

import aiohttp


class TooLarge(aiohttp.ClientPayloadError):
    """The answer is larger than whoever asked takes."""


async def read_whole(answer: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The body. Raises TooLarge, and aiohttp.ClientPayloadError where it ends early or is not to be had."""
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > most_bytes:
            raise TooLarge(f"the answer is larger than {most_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
