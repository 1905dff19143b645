from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from llama_orch.queen.ansible.fence import MARKER, fence, marked

# Leaves its session and its parent, as Ansible's workers do.
DAEMON = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); "
DAEMON += "print(os.getpid(), flush=True); time.sleep(300)"


@pytest.fixture
def run_id() -> Iterator[str]:
    name = f"test.{os.getpid()}.{time.monotonic_ns()}"
    yield name
    fence(name)


def start(run_id: str, code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {MARKER: run_id}, stdout=subprocess.PIPE)


def test_it_kills_what_carries_the_marker_and_nothing_else(run_id: str):
    mine = start(run_id, "import time; time.sleep(300)")
    other = start(run_id + "0", "import time; time.sleep(300)")
    try:
        assert fence(run_id) == 1
        assert mine.wait(5) == -9
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_it_finds_what_left_its_parent_and_session(run_id: str):
    with start(run_id, DAEMON) as first:
        assert first.stdout is not None
        left = int(first.stdout.readline())
    # The one between the two is on its way out.
    deadline = time.monotonic() + 10
    while marked(run_id) != [left]:
        assert time.monotonic() < deadline
    assert fence(run_id) == 1
    assert marked(run_id) == []


def test_nothing_to_do_is_no_error(run_id: str):
    assert fence(run_id) == 0
