"""A process of our own with pipes, which the event loop neither starts nor reaps by waiting.

asyncio starts processes on the loop's thread, which then stands still until the new program runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

# Longer than any line that one of ours writes.
LONGEST_LINE = 1024 * 1024
# One that survives SIGKILL for so long is held by the kernel; it is reaped when it is let go.
KILLED_S = 10.0


class Child:
    """A running process. `stdout` and `stderr` are readers, the latter only where it was asked for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.stdout = asyncio.StreamReader(limit=LONGEST_LINE)
        self.stderr = asyncio.StreamReader(limit=LONGEST_LINE)
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pipes: list[asyncio.BaseTransport] = []
        self._stdin: asyncio.WriteTransport | None = None
        reap_at_end(process, self._ended.set_result)

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stderr: int | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """Start it, in a session of its own and with pipes for its input and output. Raises OSError.

        `stderr` is as for `subprocess`. It does not outlive a caller that is cancelled meanwhile.
        """
        starting = asyncio.ensure_future(asyncio.to_thread(_start, command, environment, stderr, cwd))
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await cls(await starting).end()
            raise
        child = cls(process)
        try:
            await child._connect()
        except BaseException:
            await child.end()
            raise
        return child

    @property
    def status(self) -> int | None:
        """As `Popen.returncode`: None while it runs, and what ended it as a negative number."""
        return self._process.returncode

    def say(self, text: bytes) -> None:
        """Write to its standard input; nothing happens where it no longer reads."""
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(text)

    def end_input(self) -> None:
        """Close its standard input, once all is written."""
        if self._stdin is not None:
            self._stdin.close()

    async def wait(self) -> int:
        """Its status, when it has ended."""
        return await asyncio.shield(self._ended)

    async def ended_within(self, seconds: float | None) -> bool:
        """Wait for its end, and not for that of its pipes, which another process may keep open; None is for ever."""
        await asyncio.wait({self._ended}, timeout=seconds)
        return self._ended.done()

    @property
    def ended(self) -> asyncio.Future[int]:
        """Done when it has ended, with its status."""
        return self._ended

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens where it has ended."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def kill_session(self) -> None:
        """Kill what it started, and itself, also where it has ended and others hold its pipes."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def end(self, within_s: float = KILLED_S) -> int | None:
        """Kill it with all that it started, and close its pipes; its status, None where the kernel still holds it."""
        if self.status is None:
            self.kill_session()
            await asyncio.wait({self._ended}, timeout=within_s)
        for pipe in self._pipes:
            pipe.close()
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            if file is not None and not self._pipes:
                file.close()
        return self.status

    async def _connect(self) -> None:
        if self._process.stdin is not None:
            self._stdin, _ = await self._loop.connect_write_pipe(asyncio.BaseProtocol, self._process.stdin)
            self._pipes.append(self._stdin)
        await self._read(self._process.stdout, self.stdout)
        await self._read(self._process.stderr, self.stderr)

    async def _read(self, pipe: IO[Any] | None, into: asyncio.StreamReader) -> None:
        if pipe is None:
            into.feed_eof()
            return
        transport, _ = await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(into), pipe)
        self._pipes.append(transport)


def reap_at_end(process: subprocess.Popen[bytes], then: Callable[[int], object] = lambda _: None) -> None:
    """See to it that it is no zombie when it has ended, whoever looks at it; `then` gets its status."""
    loop = asyncio.get_running_loop()
    if (status := process.poll()) is not None:
        then(status)
        return
    # It is not reaped yet, so its pid is still its own.
    handle = os.pidfd_open(process.pid)

    def reap() -> None:
        if (status := process.poll()) is not None:
            loop.remove_reader(handle)
            os.close(handle)
            then(status)

    loop.add_reader(handle, reap)


def _start(
    command: Sequence[str], environment: Mapping[str, str] | None, stderr: int | None, cwd: Path | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment,
        cwd=cwd,
        start_new_session=True,
        bufsize=0,
    )
