"""The small parent of a worker: starts it, waits for its end, writes down how it ended, and outlives the agent.

`python -m llama_orch.hive.shim FOLDER LAUNCH -- COMMAND…`. It forwards nothing and imports next to nothing, since one
runs beside each worker. LAUNCH is what the file of that name in the folder held when the shim was started: one that
comes so late that the worker was launched again meanwhile starts nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

PROCESS_FILE = "process.json"
ENDED_FILE = "ended.json"
LAUNCH_FILE = "launch"
TOKEN_FLAG = "--token-fd"  # noqa: S105  a flag's name


def main(arguments: list[str]) -> int:
    """Run the command to its end; returns 0 once `ended.json` is written."""
    folder, launch, command = arguments[0], arguments[1], arguments[arguments.index("--") + 1 :]
    if not _is_current(folder, launch):
        sys.stderr.write(f"launch {launch} is not the worker's present one: nothing is started\n")
        return 1
    # Handlers, not SIG_IGN, which the worker would inherit. Whoever stops a service or a terminal signals the whole
    # group or cgroup: the worker decides for itself, and this process must still be there to see how it ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda _number, _frame: None)
    token = int(command[command.index(TOKEN_FLAG) + 1]) if TOKEN_FLAG in command else None
    if token is not None:
        os.set_inheritable(token, True)
    temporary = os.path.join(folder, "tmp")  # noqa: PTH118  pathlib would double what this process needs
    try:
        pid = os.posix_spawn(command[0], command, {**os.environ, "TMPDIR": temporary})
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        write(folder, ENDED_FILE, {"exit_code": 127, "signal": None, **_now()})
        return 1
    if token is not None:
        os.close(token)
    write(
        folder,
        PROCESS_FILE,
        {"pid": pid, "start_time": _start_time(pid), "shim_pid": os.getpid(), "boot_id": _read(_BOOT_ID).strip()},
    )
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended = {"exit_code": None, "signal": -status} if status < 0 else {"exit_code": status, "signal": None}
    write(folder, ENDED_FILE, {**ended, **_now()})
    return 0


def _is_current(folder: str, launch: str) -> bool:
    try:
        return _read(f"{folder}/{LAUNCH_FILE}") == launch
    except OSError:
        return False


_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123
        return file.read()


def _start_time(pid: int) -> int:
    # The second field is the program's name in parentheses, which may hold spaces and parentheses itself.
    return int(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19])


def _now() -> dict[str, object]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"at": now, "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME)}


def temporary_name(name: str) -> str:
    """What the file of that name is called until it is whole."""
    return f".{name}.tmp"


def write(folder: str, name: str, value: dict[str, object]) -> None:
    """Write a file of the worker's folder, whole or not at all."""
    temporary = f"{folder}/{temporary_name(name)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, f"{folder}/{name}")  # noqa: PTH104
    except OSError as error:
        # A full disk must not take the shim from under a worker that runs.
        sys.stderr.write(f"cannot write {name}: {error.strerror}\n")
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
