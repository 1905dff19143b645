"""What a child process says, to its end and within bounds: it may say too much or half of it, or leave its pipes to
others when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable

log = logging.getLogger(__name__)

# What is read, and worked on, between two turns of everything else.
PIECE = 16 * 1024
_LOOK_S = 0.2
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


async def exited(process: Process, within_s: float | None = None) -> bool:
    """Wait for a child's end; False where it has not come within `within_s` seconds.

    Unlike asyncio's own wait, not for the end of its pipes, which another process may keep open.
    """
    waiting = asyncio.create_task(process.wait())
    try:
        async with asyncio.timeout(within_s):
            while process.returncode is None:
                await asyncio.wait({waiting}, timeout=_LOOK_S)
    except TimeoutError:
        return process.returncode is not None
    finally:
        waiting.cancel()
    return True


async def hear_out(process: Process, out: Tail, err: Tail, *, typed: bytes | None = None, within_s: float) -> int:
    """Give `typed` to a child, the first of its session, and read what it says until it ends: its exit status.

    Raises TimeoutError. It and its session are ended then, and what holds its pipes when it has ended.
    """
    pipes = [(out, process.stdout), (err, process.stderr)]
    reading = [asyncio.create_task(tail.read(pipe)) for tail, pipe in pipes if pipe is not None]
    try:
        async with asyncio.timeout(within_s):
            await _type(process, typed)
            await exited(process)
    finally:
        if process.returncode is None:
            _kill_session(process)
            await exited(process, _KILLED_S)
        await _let_go(process, reading)
    assert process.returncode is not None  # noqa: S101  it has ended
    return process.returncode


async def _type(process: Process, typed: bytes | None) -> None:
    if process.stdin is not None:
        # One that ended before it read says why in another way.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(typed or b"")
            await process.stdin.drain()
        process.stdin.close()


async def _let_go(process: Process, reading: list[asyncio.Task[None]]) -> None:
    held = (await asyncio.wait(reading, timeout=_PIPES_S))[1] if reading else set[asyncio.Task[None]]()
    if held:
        _kill_session(process)
        for task in held:
            task.cancel()
        await asyncio.wait(held)
        close_pipes(process)


def close_pipes(process: Process) -> None:
    """Close this side of a child's pipes, which asyncio does by itself only where the other side is closed."""
    close: Callable[[], None] = process._transport.close  # pyright: ignore
    close()


def _kill_session(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
