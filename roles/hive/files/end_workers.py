"""End workers whose agent is stopped: `end_workers.py STATE_DIR gpu|all DRAIN_S TERM_S`. Their next agent starts them.

They are looked for among the host's processes: an agent that is stopped, or too busy to answer, cannot be asked, and a
release that is broken cannot be run; so this has nothing but the host's own Python (3.9 and newer). Each is asked to
drain, then to end, then it is killed, as the agent itself does it (`hive/workers/ending.py`). Prints the numbers of
those that were ended. Only processes of root and of the user whose the folder is count: any other's may have such
arguments, and would be waited for.
"""

import contextlib
import json
import os
import signal
import sys
import time

KILL_S = 20.0
SCAN_S = 1.0
SHIM, WORKER = "llama_orch.hive.shim", "llama_orch.worker"


def processes(state_dir, which):
    """What lives of the hive's workers, of all or of those that may hold a GPU: {pid: (worker id, whether a shim)}."""
    found = {}
    for name in os.listdir("/proc"):
        worker = worker_of(name, state_dir) if name.isdigit() else None
        if worker and (which == "all" or backend("%s/workers/%s/spec.json" % (state_dir, worker[0])) != "cpu"):
            found[int(name)] = worker
    return found


def worker_of(pid, state_dir):
    """Id of the worker whose process or shim this is, and whether a shim; None where it is neither, or has ended."""
    home = state_dir + "/workers/"
    try:
        with open("/proc/%s/stat" % pid, "rb") as stat:
            if stat.read().rpartition(b")")[2].split()[0] == b"Z":
                return None
        with open("/proc/%s/cmdline" % pid, "rb") as command:
            arguments = command.read().decode(errors="replace").split("\0")
        trusted = user_of(pid) in (0, os.stat(state_dir).st_uid)
        # A hive in a container has the same paths, and its processes show here too.
        ours = trusted and os.readlink("/proc/%s/ns/pid" % pid) == os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    folders = [argument[len(home) :].partition("/")[0] for argument in arguments if argument.startswith(home)]
    if not ours or not folders or not {SHIM, WORKER} & set(arguments):
        return None
    return folders[0], SHIM in arguments


def user_of(pid):
    """The user whose a process really is; its files in /proc may be root's whoever started it."""
    with open("/proc/%s/status" % pid, "rb") as status:
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


def signalled(number, seconds, look):
    """Send a signal to all that `look` finds, also meanwhile. Those that live after so many seconds, and the told."""
    deadline, told = time.monotonic() + seconds, set()
    while True:
        alive = look()
        served = {worker for worker, is_shim in alive.values() if not is_shim}
        for pid, (worker, is_shim) in alive.items():
            # A shim is to see how its worker ends. One without a worker is about to start it, or outlives it.
            if pid not in told and not (is_shim and worker in served):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                told.add(pid)
        again = min(deadline, time.monotonic() + SCAN_S)
        while (left := alive.keys() & look().keys()) and time.monotonic() < again:
            time.sleep(0.1)
        if not alive or (left and time.monotonic() >= deadline):
            return left, told


def main():
    """End them, in three steps."""
    state_dir, which = sys.argv[1].rstrip("/"), sys.argv[2]
    drain_s, term_s = map(float, sys.argv[3:])
    steps = [(signal.SIGTERM, term_s), (signal.SIGKILL, KILL_S)]
    if drain_s > 0:
        steps.insert(0, (signal.SIGUSR1, drain_s))
    ended = set()
    for number, seconds in steps:
        left, told = signalled(number, seconds, lambda: processes(state_dir, which))
        ended |= told
        if not left:
            break
    else:
        sys.exit("workers survive SIGKILL, as the kernel holds them: %s" % " ".join(map(str, sorted(left))))
    print(*sorted(ended))


if __name__ == "__main__":
    main()
