"""Runs a module of ours in a process of its own, for one answer on its standard output."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from . import backoff
from .child import Child
from .child_output import Tail, hear_out
from .processes import interpreter

log = logging.getLogger(__name__)
# More than any answer has, and than what is complained about is of use.
MOST_BYTES = 8 * 1024 * 1024
# By these a process of ours ends itself where it takes too long.
_OWN_LIMITS = {signal.SIGALRM, signal.SIGXCPU}
# For one that was killed from outside, or ended in the middle of its answer.
TRIES = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the process said, and how it ended.

    `status` is None where it had not ended within its time, or said more than any answer has.
    """

    said: bytes = b""
    complaint: bytes = b""
    status: int | None = None

    @property
    def was_cut(self) -> bool:
        """Whether it says nothing of the question that this is no answer: asked again, it may be one."""
        return self.status == 0 or (self.status is not None and self.status < 0 and -self.status not in _OWN_LIMITS)


class NoAnswer(Exception):
    """The process gave none that can be understood."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"ended with status {answer.status}, without an answer")
        self.answer = answer


async def ask(
    module: str,
    *arguments: str,
    understand: Callable[[bytes], T],
    within_s: float,
    environment: dict[str, str],
    question: bytes | None = None,
    stderr: int | None = None,
) -> T:
    """What `understand` makes of the answer of `python -m MODULE ARGUMENTS…`, which gets `question` on its input.

    Each try takes `within_s` seconds at most; one whose process was killed or stopped half way is followed by another.
    `understand` raises ValueError or LookupError for what is no answer. Raises NoAnswer, and what `understand` raises.
    """
    tries = 0
    while True:
        tries += 1
        answer = await answer_of(
            module, *arguments, within_s=within_s, environment=environment, question=question, stderr=stderr
        )
        try:
            return understand(answer.said)
        except (ValueError, LookupError):
            if not answer.was_cut or tries >= TRIES:
                raise NoAnswer(answer) from None
        wait = backoff.delay(tries)
        log.warning("%s ended with status %s, without an answer; asked again in %.1f s", module, answer.status, wait)
        await asyncio.sleep(wait)


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
    as for `subprocess`; what comes through a pipe is the complaint. One that cannot be started has no status.
    """
    command = [interpreter(), "-P", "-m", module, *arguments]
    try:
        child = await Child.start(command, environment=environment, stderr=stderr)
    except OSError as error:
        log.error("%s cannot be started: %s", module, error.strerror)  # noqa: TRY400
        return Answer()
    out, err = Tail(MOST_BYTES), Tail(MOST_BYTES)
    try:
        status = await hear_out(child, out, err, typed=question, within_s=within_s)
    except TimeoutError:
        return Answer()
    return Answer(bytes(out.data), bytes(err.data), status) if out.whole else Answer()
