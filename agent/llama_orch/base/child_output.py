"""What a child process says, to its end and within bounds: it may say too much or half of it, or leave its pipes to
others when it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from .child import Child

log = logging.getLogger(__name__)

# What is read, and worked on, between two turns of everything else.
PIECE = 16 * 1024
# A child that has ended has written all; what keeps its pipe open is not it.
_PIPES_S = 1.0
_KILLED_S = 5.0


class Tail:
    """The last `most` bytes that came out of a pipe; `whole` where these are all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.data = bytearray()
        self.whole = True

    async def read(self, pipe: asyncio.StreamReader) -> None:
        """Read until the pipe ends; what came until then is there also where this is cancelled."""
        while piece := await pipe.read(PIECE):
            self.data += piece
            if len(self.data) > self._most:
                del self.data[: len(self.data) - self._most]
                self.whole = False

    @property
    def text(self) -> str:
        """As text; what is none shows as replaced."""
        return self.data.decode(errors="replace")


async def lines(pipe: asyncio.StreamReader, most: int) -> AsyncGenerator[bytes, None]:
    """Each whole line without its end, until the pipe ends.

    A line of more than `most` bytes is left out, and so is half a one at the end.
    """
    rest, too_long = b"", False
    while piece := await pipe.read(PIECE):
        *ended, rest = (rest + piece).split(b"\n")
        for line in ended:
            if not too_long and len(line) <= most:
                yield line
            else:
                log.warning("a line of a child process has more than %d bytes and is left out", most)
            too_long = False
        if len(rest) > most:
            rest, too_long = b"", True
        # A pipe that is full gives without a wait.
        await asyncio.sleep(0)
    if rest or too_long:
        log.warning("a child process ended within a line, which is left out")


async def hear_out(child: Child, out: Tail, err: Tail, *, typed: bytes | None = None, within_s: float) -> int:
    """Give `typed` to a child and read what it says until it ends: its exit status. Its pipes are closed then.

    Raises TimeoutError. It and all that it started are ended then, and what holds its pipes when it has ended.
    """
    reading = {asyncio.create_task(out.read(child.stdout)), asyncio.create_task(err.read(child.stderr))}
    try:
        child.say(typed or b"")
        child.end_input()
        if not await child.ended_within(within_s):
            raise TimeoutError
        # What keeps its pipes open is not it.
        if (await asyncio.wait(reading, timeout=_PIPES_S))[1]:
            child.kill_session()
    finally:
        if child.status is None:
            child.kill_session()
            await child.ended_within(_KILLED_S)
        held = (await asyncio.wait(reading, timeout=_PIPES_S))[1]
        for task in held:
            task.cancel()
        await child.end()
    return await child.wait()
