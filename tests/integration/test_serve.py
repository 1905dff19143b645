"""A signal ends a service whenever it comes, and running answers are finished first."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

PROGRAM = """
import asyncio, os, sys, threading, time
from prometheus_client import CollectorRegistry
from llama_orch.contract import operations as ops
from llama_orch.contract.common import QueenHealth
from llama_orch.web import serve
from llama_orch.web.app import Routes, create_app
from llama_orch.base.tokens import Token

routes = Routes((ops.QUEEN_HEALTH,))

@routes.handle(ops.QUEEN_HEALTH)
async def health(request):
    print("answering", flush=True)
    await asyncio.sleep(float(sys.argv[2]))
    if "spawn" in sys.argv:
        child = await asyncio.create_subprocess_exec("true")
        assert await child.wait() == 0
    return QueenHealth(version="0.1.0")

app = create_app("served", "queen", routes, token=Token("a-token-of-enough-length"), registry=CollectorRegistry())

@app.before_server_start
async def begin(app):
    print(listener.getsockname()[1], flush=True)
    await asyncio.sleep(float(sys.argv[1]))

@app.after_server_stop
async def end(app):
    print("stopped", flush=True)

if "spawn" in sys.argv:
    # As the hub's client does: it closes its connections in a child, under a lock that another thread may hold.
    lock = threading.RLock()
    held = threading.Thread(target=lambda: (lock.acquire(), time.sleep(60)), daemon=True)
    held.start()
    os.register_at_fork(after_in_child=lambda: lock.acquire(timeout=20))

listener = serve.bind("127.0.0.1", 0)
serve.run(app, listener)
"""


def start(starting: float, answering: float, *more: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(starting), str(answering), *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}/health"


def rest(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=15)
    finally:
        process.kill()
    return process.returncode, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_it_gracefully(number: signal.Signals):
    process, _ = start(0.3, 0)
    process.send_signal(number)
    assert rest(process) == (0, "stopped\n")


def test_a_signal_right_after_the_first_answer_is_not_lost():
    for _ in range(10):
        process, url = start(0, 0)
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert rest(process) == (0, "answering\nstopped\n")


def test_a_running_answer_is_finished_and_a_second_signal_changes_nothing():
    process, url = start(0, 0.6)
    statuses: list[int] = []

    def ask() -> None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            statuses.append(answer.status)

    asking = threading.Thread(target=ask)
    asking.start()
    assert process.stdout is not None and process.stdout.readline() == "answering\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    asking.join(10)
    assert (rest(process), statuses) == ((0, "stopped\n"), [200])


def test_no_request_is_answered_before_the_start_is_done():
    process, url = start(0.5, 0)
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.status == 200
    process.terminate()
    assert rest(process)[0] == 0


def test_a_child_is_started_whatever_locks_other_threads_hold():
    process, url = start(0, 0, "spawn")
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.status == 200
    process.terminate()
    assert rest(process)[0] == 0
