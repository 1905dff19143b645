from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llama_orch.base import processes


def test_a_process_has_one_start_time_until_it_ends():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        began = processes.start_time(child.pid)
        assert began is not None and began == processes.start_time(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.start_time(child.pid) is None, "it only waits to be reaped"
    assert processes.start_time(child.pid) is None


def test_a_boot_has_one_name_and_one_time():
    assert processes.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert processes.uptime() <= processes.uptime()


def test_this_process_is_in_this_container():
    assert processes.is_in_this_container(Path("/proc/self"))
