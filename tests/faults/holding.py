"""What processes hold, for those that run long: files and memory that grow, and children that nobody reaped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

# What may be held more than when all was fresh, in files and in bytes.
MORE_FILES, MORE_BYTES = 40, 150 * 2**20


class Holding:
    """Compares with what was held when all was fresh. Processes are given by what they are called."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, int]] = {}

    def remember(self, pids: Mapping[str, int]) -> None:
        """All is fresh now."""
        self._first = {name: _held(pid) for name, pid in pids.items()}

    def wrong(self, pids: Mapping[str, int]) -> list[str]:
        """What has grown, and what was not reaped."""
        found: list[str] = []
        for name, pid in pids.items():
            files, size = _held(pid)
            first_files, first_size = self._first.get(name, (files, size))
            if files > first_files + MORE_FILES:
                found.append(f"the {name} has {files} files open, {first_files} at first")
            if size > first_size + MORE_BYTES:
                found.append(f"the {name} holds {size >> 20} MiB, {first_size >> 20} at first")
        return found + [f"process {pid} of the {name} is a zombie" for name, pid in _zombies(pids)]


def _held(pid: int) -> tuple[int, int]:
    """Open files, and bytes in memory. Raises OSError where the process is gone."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE")


def _zombies(pids: Mapping[str, int]) -> list[tuple[str, int]]:
    parents = {pid: name for name, pid in pids.items()}
    found: list[tuple[str, int]] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z" and int(fields[1]) in parents:
                found.append((parents[int(fields[1])], int(entry.name)))
    return found
