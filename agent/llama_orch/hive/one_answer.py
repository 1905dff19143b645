"""Runs a module of ours in a process of its own, for one answer on its standard output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass

from . import process


@dataclass(frozen=True)
class Answer:
    """What the process said, and how it ended; `status` is None where it had not within its time."""

    said: bytes = b""
    complaint: bytes = b""
    status: int | None = None


async def answer_of(
    module: str,
    *arguments: str,
    within_s: float,
    environment: dict[str, str],
    question: bytes | None = None,
    stderr: int | None = None,
) -> Answer:
    """The answer of `python -m MODULE ARGUMENTS…`, which gets `question` on its standard input.

    The process and all that it started are ended where they take longer, and where the caller is cancelled. `stderr` is
    as for `subprocess`; what comes through a pipe is the complaint.
    """
    child = await asyncio.create_subprocess_exec(
        *(process.interpreter(), "-P", "-m", module, *arguments),
        stdin=asyncio.subprocess.DEVNULL if question is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env=environment,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(within_s):
            said, complaint = await child.communicate(question)
        return Answer(said, complaint or b"", child.returncode)
    except TimeoutError:
        return Answer()
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
