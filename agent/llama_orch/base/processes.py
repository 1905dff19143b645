"""Which process is which: a pid alone may be another's by now, a pid with its start time in one boot is not."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path


@functools.cache
def boot_id() -> str:
    """What changes with each boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def uptime() -> float:
    """Seconds since the machine's boot, its sleep included: no clock that is set changes it.

    What one run of a program noted the next can compare with, within the same `boot_id`.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def start_time(pid: int) -> int | None:
    """When a process began, in ticks since boot; None where it is gone or only waits to be reaped."""
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in {b"Z", b"X"} else int(fields[19])


def stat_fields(pid: int) -> list[bytes] | None:
    """What `/proc/PID/stat` says behind the name (proc_pid_stat(5)), from the state on; None where it is gone."""
    try:
        # The name stands in parentheses, and may hold spaces and parentheses itself.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None


def is_in_this_container(entry: Path) -> bool:
    """Whether a process sees the same pids as this one. `entry` is its folder in `/proc`. Raises OSError.

    Processes of containers show in the host's `/proc`, with the same paths in their arguments.
    """
    return (entry / "ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()


@functools.cache
def interpreter() -> str:
    """This Python by the path of its own release: a worker must not change its code when `current` is switched.

    Looked up at the agent's start, as it may be switched at any time.
    """
    executable = Path(sys.executable)
    return str(executable.parent.resolve() / executable.name)
