"""Workers that hang: noticed by what their engine last did, ended, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_orch.demo_model import expected_completion, write_demo_model
from tests.support.hives import HiveProcess, a_hive, complete, until

# <linux/ptrace.h>: to stop one thread of a process, which no signal can.
_SEIZE, _INTERRUPT, _WALL = 0x4206, 0x4207, 0x40000000


@pytest.fixture
def demo(tmp_path: Path) -> str:
    return f"file:{write_demo_model(tmp_path / 'demo.gguf')}"


async def _started_again(hive: HiveProcess, worker: dict[str, Any]) -> dict[str, Any]:
    async def again() -> bool:
        found = await hive.ok("GET", f"/api/v1/workers/{worker['id']}")
        return found["status"] == "idle" and found["pid"] != worker["pid"]

    await until(again, "it is started again")
    found = await hive.ok("GET", f"/api/v1/workers/{worker['id']}")
    assert (found["restarts"], found["last_error"]["code"]) == (1, "hung")
    assert await complete(found["url"], "A", 20) == expected_completion("A", 20)
    return found


async def test_a_worker_that_was_stopped_is_started_again_and_one_that_slept_is_not(tmp_path: Path, demo: str):
    async with a_hive(tmp_path) as hive:
        stopped, sleeper = await hive.idle(demo, name="stopped"), await hive.idle(demo, name="sleeper")
        os.kill(stopped["pid"], signal.SIGSTOP)
        os.kill(sleeper["pid"], signal.SIGSTOP)
        await asyncio.sleep(8)
        os.kill(sleeper["pid"], signal.SIGCONT)
        found = await _started_again(hive, stopped)
        assert "it has not answered for" in found["last_error"]["message"]
        assert (await hive.worker(sleeper["id"], status="idle"))["pid"] == sleeper["pid"]


async def test_an_engine_that_hangs_in_a_worker_that_answers_is_noticed(tmp_path: Path, demo: str):
    async with a_hive(tmp_path) as hive:
        worker = await hive.idle(demo, name="chat")
        with _all_threads_stopped_but_the_first(worker["pid"]):
            found = await _started_again(hive, worker)
        assert "its engine has ended no step for" in found["last_error"]["message"]


@contextlib.contextmanager
def _all_threads_stopped_but_the_first(pid: int) -> Iterator[None]:
    """The first serves HTTP. The thread that traces them must stay, or they go on."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    failed, traced, over = list[str](), threading.Event(), threading.Event()

    def trace() -> None:
        threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir() if entry.name != str(pid)]
        for thread in threads:
            if libc.ptrace(_SEIZE, thread, None, None) or libc.ptrace(_INTERRUPT, thread, None, None):
                failed.append(os.strerror(ctypes.get_errno()))
        traced.set()
        # A thread that ended is gone once its tracer has seen that.
        while not over.wait(0.1):
            for thread in threads:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(thread, os.WNOHANG | _WALL)

    tracer = threading.Thread(target=trace)
    tracer.start()
    try:
        assert traced.wait(30) and not failed, failed
        yield
    finally:
        over.set()
        tracer.join()
