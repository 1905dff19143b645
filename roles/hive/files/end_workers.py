"""End workers whose agent is stopped: `end_workers.py DRAIN_S TERM_S PID...`. Their next agent starts them again.

Each is asked to drain, then to end, then it is killed. A process that is no worker is left alone: its number may
belong to another by now. Prints the numbers of those that were ended.
"""

import contextlib
import os
import signal
import sys
import time

KILL_S = 20.0


def is_worker(pid):
    """Whether this process is a worker that has not ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            if stat.read().rpartition(b")")[2].split()[0] == b"Z":
                return False
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            return b"llama_orch.worker" in command.read().split(b"\0")
    except OSError:
        return False


def main():
    """End them, in three steps."""
    drain_s, term_s = float(sys.argv[1]), float(sys.argv[2])
    workers = [int(pid) for pid in sys.argv[3:] if is_worker(pid)]
    left = list(workers)
    for number, seconds in ((signal.SIGUSR1, drain_s), (signal.SIGTERM, term_s), (signal.SIGKILL, KILL_S)):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while (left := [pid for pid in left if is_worker(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
    if left:
        sys.exit(f"workers survive SIGKILL, as the kernel holds them: {' '.join(map(str, left))}")
    print(*workers)


if __name__ == "__main__":
    main()
