"""End workers whose agent is stopped: `end_workers.py STATE_DIR gpu|all DRAIN_S TERM_S`. Their next agent starts them.

They are looked for among the host's processes: an agent that is stopped, or too busy to answer, cannot be asked. Each
is asked to drain, then to end, then it is killed. Prints the numbers of those that were ended. Only processes of root
and of the user whose the folder is count: any other's may have such arguments, and would be waited for.
"""

import contextlib
import json
import os
import signal
import sys
import time

KILL_S = 20.0


def workers(state_dir, which):
    """The numbers of the hive's processes that serve a model: all of them, or those that may hold a GPU."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and is_worker(int(name), state_dir, which)]


def is_worker(pid, state_dir, which):
    """Whether this process is a worker of the hive that has not ended, and one that is to be ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            if stat.read().rpartition(b")")[2].split()[0] == b"Z":
                return False
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            arguments = command.read().decode(errors="replace").split("\0")
        trusted = user_of(pid) in (0, os.stat(state_dir).st_uid)
        # A hive in a container has the same paths, and its processes show here too.
        ours = trusted and os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return False
    specs = [argument for argument in arguments if argument.startswith(f"{state_dir}/workers/")]
    if (
        not trusted
        or not ours
        or "llama_orch.worker" not in arguments
        or "llama_orch.hive.shim" in arguments
        or not specs
    ):
        return False
    return which == "all" or backend(specs[0]) != "cpu"


def user_of(pid):
    """The user whose a process really is; its files in /proc may be root's whoever started it."""
    with open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Uid:"):
                return int(line.split()[1])
    return -1


def backend(spec):
    """What the worker was told to compute with; nothing where that cannot be read."""
    try:
        with open(spec, encoding="utf-8") as file:
            return json.load(file)["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def main():
    """End them, in three steps."""
    state_dir, which = sys.argv[1].rstrip("/"), sys.argv[2]
    drain_s, term_s = map(float, sys.argv[3:])
    found = workers(state_dir, which)
    left = list(found)
    for number, seconds in ((signal.SIGUSR1, drain_s), (signal.SIGTERM, term_s), (signal.SIGKILL, KILL_S)):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while (left := [pid for pid in left if is_worker(pid, state_dir, which)]) and time.monotonic() < deadline:
            time.sleep(0.1)
    if left:
        sys.exit(f"workers survive SIGKILL, as the kernel holds them: {' '.join(map(str, left))}")
    print(*found)


if __name__ == "__main__":
    main()
