"""One live queen per data folder: two with one executor id would run every job twice."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TextIO

from llama_orch.base import locks


class AnotherQueen(Exception):
    """Another process holds the folder; the message names it."""


def hold(data: Path) -> TextIO:
    """Take the folder's lock for the life of the returned file. Raises AnotherQueen."""
    file = (data / "queen.lock").open("a+", encoding="utf-8")
    if not locks.take(file):
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise AnotherQueen(f"another queen (process {holder}) works with the data_dir {data}")
    # Only the message above needs it: a full disk is no reason not to start.
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), str(os.getpid()).encode())
    return file
