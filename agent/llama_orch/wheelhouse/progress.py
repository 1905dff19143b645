"""Shows how far a long build is: one line that changes on a terminal, else a line now and then.

Nothing but the standard library is there when the engine is built, so no library draws it.
"""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import Self

LOG_EVERY_S = 15.0
_TERMINAL_EVERY_S = 0.2


class Progress:
    """`what` is done step by step; `then` says what comes after. To stderr, as all that is said to people.

    Steps are files, or bytes where `megabytes` says so.
    """

    def __init__(self, what: str, then: str = "", *, megabytes: bool = False) -> None:
        self._what = what
        self._megabytes = megabytes
        self._then = f"; then: {then}" if then else ""
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown_at = float("-inf")
        self._width = 0

    def __enter__(self) -> Self:
        self._write(f"{self._what} …{self._then}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._terminal:
            # What follows begins on a line of its own.
            sys.stderr.write("\n")
            sys.stderr.flush()

    def show(self, done: int, total: int) -> None:
        """Say that so many steps of all are done, unless something was said just before."""
        now = time.monotonic()
        if now - self._shown_at < (_TERMINAL_EVERY_S if self._terminal else LOG_EVERY_S) and done < total:
            return
        self._write(self.line(done, total, now - self._began))

    def line(self, done: int, total: int, elapsed_s: float) -> str:
        """What is said when so many steps of all were done within that many seconds."""
        left = ""
        if 0 < done < total:
            left = f", about {_duration(elapsed_s * (total - done) / done)} left"
        elif done >= total:
            left = f", {_duration(elapsed_s)}"
        share = 100 * done // max(total, 1)
        steps = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if self._megabytes else f"{done} of {total} files"
        return f"{self._what} {share} % ({steps}{left}){self._then if done < total else ''}"

    def _write(self, text: str) -> None:
        self._shown_at = time.monotonic()
        if not self._terminal:
            sys.stderr.write(text + "\n")
        else:
            # A line that wraps could not be written over.
            text = text[: max(shutil.get_terminal_size().columns - 1, 20)]
            sys.stderr.write("\r" + text.ljust(self._width))
            self._width = len(text)
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{round(whole / 60)} min"
