"""Ends what a run left on this machine: every process whose environment carries the run's marker.

Ansible's workers live in sessions of their own and outlive ansible-playbook, its runner and the queen; the marker
finds them wherever they are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

MARKER = "LLAMA_ORCH_RUN"
_ROUNDS = 60
_PAUSE_S = 0.05


class FenceFailed(Exception):
    """Processes of the run are still there; the message names them."""


def marked(run_id: str) -> list[int]:
    """The processes, other than this one, whose environment carries the run's marker."""
    wanted = f"{MARKER}={run_id}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def fence(run_id: str) -> int:
    """Kill every marked process and wait until none is left; answers how many there were. Raises FenceFailed."""
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        left = marked(run_id)
        if not left:
            return len(killed)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(_PAUSE_S)
    raise FenceFailed(f"processes {marked(run_id)} of run {run_id} do not end")


def close_connections(control_folder: Path) -> None:
    """End the ssh connections that are kept open under `control_folder`: their masters lose the marker."""
    if not control_folder.is_dir():
        return
    for path in control_folder.iterdir():
        if path.is_socket():
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                subprocess.run(
                    ["ssh", "-O", "exit", "-o", f"ControlPath={path}", "llama-orch"],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=5,
                    check=False,
                )
