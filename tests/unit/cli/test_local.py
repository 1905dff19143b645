"""What an `up` that was killed left is found by the next one: all of it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_orch.cli import processes
from llama_orch.cli.local import Home
from llama_orch.contract.home import HOME_VARIABLE
from llama_orch.hive import child_environment as hive_environment
from llama_orch.hive.models.hub import environment as hub_environment
from llama_orch.queen import queen as queen_module

# A program that says when it runs, and to which TERM says nothing.
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); signal.pause()"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home in whose processes this test pretends to be."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*argv: str, env: dict[str, str], code: str = STUBBORN) -> subprocess.Popen[bytes]:
        # What stands behind the code is arguments of it, and shows as those of a module would.
        child = subprocess.Popen([sys.executable, "-c", code, *argv], env=env, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None and child.stdout.readline() == b"here\n"
        return child

    yield run
    for child in started:
        child.kill()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.parametrize(
    "handed_on",
    [
        hive_environment.child_environment,
        lambda: hub_environment.environment("", Path("/cache")),
        queen_module.child_environment,
    ],
    ids=["worker", "download", "playbook"],
)
def test_what_queen_and_hive_start_is_known_again(home: Home, start: Start, handed_on: Callable[[], dict[str, str]]):
    child = start("-m", "llama_orch.something", env=handed_on())
    assert [pid for pid, _ in processes.marked(home.marker)] == [child.pid]


def test_without_up_nothing_of_a_home_is_handed_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    for environment in (
        hive_environment.child_environment(),
        hub_environment.environment("", Path("/cache")),
        queen_module.child_environment(),
    ):
        assert HOME_VARIABLE not in environment


def test_workers_are_left_for_the_next_hive_and_all_else_ends(
    home: Home, start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("llama_orch.cli.local.SERVICES_SECONDS", 0.1)
    monkeypatch.setattr("llama_orch.cli.local.OTHERS_SECONDS", 0.1)
    environment = dict(os.environ)
    queen = start("-m", "llama_orch.queen", env=environment)
    playbook = start("ansible-playbook", env=environment)
    shim = start("-m", "llama_orch.hive.shim", env=environment)
    worker = start("-m", "llama_orch.worker", env=environment)
    other_home = start("-m", "llama_orch.queen", env=environment | {HOME_VARIABLE: f"{home.folder}-2"})
    stranger = start(str(home.folder / "log" / "queen.log"), env={"PATH": os.environ["PATH"]})
    told = home.end_leftovers()
    assert queen.wait(10) and playbook.wait(10)
    assert len(told) == 2 and f"process {queen.pid} " in told[0] and f"process {playbook.pid} " in told[1]
    assert all(child.poll() is None for child in (shim, worker, other_home, stranger))
    assert len(home.end_leftovers(workers_too=True)) == 2
    assert shim.wait(10) and worker.wait(10)
    assert other_home.poll() is None and stranger.poll() is None


def test_what_a_service_ends_by_itself_is_not_ended_beside_it(home: Home, start: Start):
    # It ends its child only after a moment, and says how the child ended by its own exit status.
    service = (
        "import signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "def stop(*_):\n"
        "    time.sleep(0.5)\n"
        "    sys.exit(7 if child.poll() is None and not child.kill() and child.wait() else 1)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('here', flush=True)\n"
        "time.sleep(60)\n"
    )
    queen = start("-m", "llama_orch.queen", env=dict(os.environ), code=service)
    assert len(home.end_leftovers()) == 1
    assert queen.wait(10) == 7
