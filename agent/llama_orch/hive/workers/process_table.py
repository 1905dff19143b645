"""The process table: which processes are workers, told apart from strangers with the same pid, and signalled."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from llama_orch.base import files
from llama_orch.base.processes import boot_id, is_in_this_container, start_time, stat_fields

from ..shim import PROCESS_FILE
from .pulse import Progress

log = logging.getLogger(__name__)
SHIM = "llama_orch.hive.shim"
WORKER = "llama_orch.worker"


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with its pid: `start_time` is in ticks since boot."""

    pid: int
    start_time: int
    is_shim: bool = field(default=False, compare=False)

    def lives(self) -> bool:
        """Whether it still runs; one that ended and waits to be reaped does not."""
        return start_time(self.pid) == self.start_time

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens where it is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # The descriptor holds on to whatever has the pid now, so this check cannot become untrue.
            if self.lives():
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            log.warning("process %d belongs to another user: it gets no %s", self.pid, number.name)
        finally:
            os.close(handle)


def progress(pid: int) -> Progress | None:
    """What a process has had of the machine so far; None where it is gone."""
    fields = stat_fields(pid)
    if fields is None:
        return None
    # In nanoseconds of each thread, where the kernel counts them; else in ticks of 10 ms, in which much goes unseen.
    ran = [_ran(entry) for entry in _threads(pid)]
    cpu = sum(ran) if any(ran) else int(fields[11]) + int(fields[12])
    return Progress(cpu=cpu, major_faults=int(fields[9]))


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _ran(thread: Path) -> int:
    try:
        return int((thread / "schedstat").read_bytes().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def recorded(folder: Path) -> Process | None:
    """The worker that the shim of this folder wrote down, whether it lives or not.

    None after a reboot, and where the file is damaged.
    """
    found = files.read_json(folder / PROCESS_FILE)
    if not isinstance(found, dict) or found.get("boot_id") != boot_id():
        return None
    pid, began = found.get("pid"), found.get("start_time")
    # Nothing else was ever written by the shim; 0 and less would mean whole groups of processes.
    return Process(pid, began) if type(pid) is int and type(began) is int and 0 < pid < 2**31 else None


def find(state_dir: Path) -> dict[str, list[Process]]:
    """All living processes of workers below this state folder, shims too, by worker id, as /proc shows them.

    It finds those that no record knows of: the agent may have died between starting a process and writing it down.
    """
    home = f"{workers_dir(state_dir)}/"
    found: dict[str, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        folder = _folder_of(arguments, home)
        began = start_time(int(entry.name)) if folder and _is_of_this_system(entry) else None
        if folder and began is not None:
            found.setdefault(folder, []).append(Process(int(entry.name), began, SHIM in arguments))
    return found


def _is_of_this_system(entry: Path) -> bool:
    """Whether a process is ours to judge. A container's hive has the same paths, and its processes show here too."""
    try:
        if os.getuid() not in {0, entry.stat().st_uid}:
            return False
        return is_in_this_container(entry)
    except PermissionError:
        return True
    except OSError:
        return False


def _folder_of(arguments: list[str], home: str) -> str | None:
    if SHIM not in arguments and WORKER not in arguments:
        return None
    for argument in arguments:
        if argument.startswith(home):
            return argument.removeprefix(home).partition("/")[0]
    return None


def workers_dir(state_dir: Path) -> Path:
    """Where the workers' folders are."""
    return state_dir / "workers"
