"""Ports for tests: below those that the kernel gives out, and never the same for two test processes at once."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import tempfile
from pathlib import Path
from typing import IO

_FIRST, _BLOCK, _BLOCKS = 20000, 1000, 12


class _Ports:
    """A block of ports that is this process's as long as it lives, given out one after the other."""

    def __init__(self) -> None:
        self._lock, self._start = self._take()
        self._next = 0

    def _take(self) -> tuple[IO[bytes], int]:
        for number in range(_BLOCKS):
            lock = (Path(tempfile.gettempdir()) / f"llama-orch-test-ports-{number}").open("wb")
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock, _FIRST + number * _BLOCK
            lock.close()
        raise AssertionError(f"more than {_BLOCKS} test processes at once")

    def give(self, span: int) -> int:
        for _ in range(_BLOCK):
            port = self._start + self._next
            self._next += span
            if self._next + span > _BLOCK:
                self._next = 0
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
        raise AssertionError("no free port")


_ours: _Ports | None = None


def free_port(span: int = 1) -> int:
    """A port that nobody uses now, and, with `span`, that many from it on which no other test is given."""
    global _ours  # noqa: PLW0603  the block belongs to the process
    if _ours is None:
        _ours = _Ports()
    return _ours.give(span)
