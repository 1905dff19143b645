"""What a process and its children have used, from /proc, and what the rest of the machine did meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and all that it started and that still runs."""
    found = [pid]
    for known in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{known}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of the process with all its threads, of its children, and of those that have ended."""
    ticks = 0
    for known in tree(pid):
        with contextlib.suppress(OSError):
            # The name before them may hold spaces and brackets.
            fields = Path(f"/proc/{known}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def resident_bytes(pid: int) -> int:
    """Memory in use, the pages of the model's file included."""
    total = 0
    for known in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{known}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
    return total


def machine_busy_seconds() -> float:
    """CPU time that the whole machine has spent, time taken by a hypervisor's other guests included."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, interrupt, soft, stolen = map(int, fields[:8])
    return (user + nice + system + interrupt + soft + stolen) / _TICK


class Quiet:
    """Waits for a machine that nobody else uses, as long as there is patience left."""

    def __init__(self, busy_cores: float, patience_seconds: float) -> None:
        self.busy_cores = busy_cores
        self.patience = patience_seconds

    def wait(self) -> bool:
        """Return True as soon as others use less than `busy_cores`, False when the patience is at an end."""
        while self.patience > 0:
            busy, began = machine_busy_seconds(), time.monotonic()
            time.sleep(0.5)
            passed = time.monotonic() - began
            if machine_busy_seconds() - busy < self.busy_cores * passed:
                return True
            self.patience -= passed
        return False
