"""Locks between processes, by flock(2): the kernel lets go of one when its holder ends, however that was.

Own code, as what is locked is often the data itself (a download's file), which `filelock` would truncate or delete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

_ASK_AGAIN_S = 0.05


class Held(Exception):
    """Another process holds the lock; `path` is its file."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"another process holds {path}")
        self.path = path


class _Open(Protocol):
    def fileno(self) -> int: ...


def take(file: _Open | int) -> bool:
    """Lock an open file until it is closed, also by processes that inherited it; False where another one holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def held(path: Path, within_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file, which is made where it is missing, and stays. Raises Held where that takes longer; OSError."""
    until = time.monotonic() + within_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not take(descriptor):
            if time.monotonic() >= until:
                raise Held(path)
            time.sleep(_ASK_AGAIN_S)
        yield
    finally:
        os.close(descriptor)
