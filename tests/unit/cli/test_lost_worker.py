from __future__ import annotations

from typing import Any

import pytest

from llama_orch.cli import lost_worker
from llama_orch.contract.common import Problem
from llama_orch.contract.hive import WorkerStatus
from llama_orch.contract.inference import ChatRequest
from tests.unit.cli.conftest import Command
from tests.unit.cli.services import Fleet, a_worker

CRASHED = Problem(code="killed", message="ended by signal 4 (SIGILL)", what_to_do="Build the wheels anew.")
LONG_AGO = Problem(code="killed", message="ended by signal 9 (SIGKILL)", what_to_do="Look at dmesg.")
OLD_ADVICE = "Is it running there?"
REASON = (
    "error: worker w1 gave no whole answer: ended by signal 4 (SIGILL)\n"
    "Build the wheels anew.\n"
    "It is started again by itself: ask again in a moment.\n"
)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_worker, "ASK_SECONDS", 0.5)


@pytest.fixture
def cut(fleet: Fleet) -> Fleet:
    """A fleet whose worker serves, answers half and is gone."""
    fleet.workers["w1"] = a_worker("w1", url=fleet.urls["worker"], last_error=LONG_AGO, restarts=1)
    fleet.cut_answer = True
    return fleet


def change(fleet: Fleet, **fields: Any) -> None:
    fleet.workers["w1"] = a_worker(
        "w1", **{"url": fleet.urls["worker"], "last_error": LONG_AGO, "restarts": 1} | fields
    )


def crash(fleet: Fleet) -> None:
    change(fleet, url=None, status="loading", restarts=2, last_error=CRASHED)


async def test_a_worker_that_died_is_explained_by_its_hive(cut: Fleet, command: Command):
    cut.on_cut = lambda: crash(cut)
    result = await command("chat", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "Hello there, tester.\n", REASON)


async def test_json_tells_it_too(cut: Fleet, command: Command):
    cut.on_cut = lambda: crash(cut)
    result = await command("chat", "Hi", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", REASON)


async def test_a_hive_may_need_a_moment(cut: Fleet, command: Command):
    asked: list[int] = []

    def on_list() -> None:
        asked.append(1)
        if len(asked) == 4:
            crash(cut)

    cut.on_list = on_list
    assert (await command("chat", "Hi")).stderr == REASON


async def test_one_that_is_back_already_died_all_the_same(cut: Fleet, command: Command):
    cut.on_cut = lambda: change(cut, restarts=2, last_error=CRASHED)
    assert (await command("chat", "Hi")).stderr == REASON


async def test_one_that_is_not_started_again_says_so(cut: Fleet, command: Command):
    cut.on_cut = lambda: change(cut, url=None, status="failed", last_error=CRASHED)
    result = await command("chat", "Hi")
    assert (
        result.stderr == "error: worker w1 gave no whole answer: ended by signal 4 (SIGILL)\nBuild the wheels anew.\n"
    )
    again = await command("chat", "Hi")
    assert "no worker serves (w1 is failed)" in again.stderr and "Build the wheels anew." in again.stderr


@pytest.mark.parametrize("status", ["idle", "draining"])
async def test_what_happened_long_ago_is_no_reason(cut: Fleet, command: Command, status: str):
    cut.on_cut = lambda: change(cut, status=status)
    result = await command("chat", "Hi")
    assert f"The hive says that worker w1 is {status}" in result.stderr
    assert "SIGKILL" not in result.stderr and OLD_ADVICE not in result.stderr


async def test_one_that_was_stopped(cut: Fleet, command: Command):
    cut.on_cut = cut.workers.clear
    assert "worker w1 was stopped" in (await command("chat", "Hi")).stderr


async def test_an_address_is_looked_up_at_the_hive(cut: Fleet, command: Command):
    cut.on_cut = lambda: change(cut, status="loading", restarts=2, last_error=CRASHED)
    by_name = cut.urls["worker"].replace("127.0.0.1", "localhost") + "/"
    assert (await command("chat", "Hi", "--worker", by_name)).stderr == REASON


async def test_an_address_without_a_process_is_waited_for(cut: Fleet, command: Command):
    cut.on_cut = lambda: crash(cut)
    cut.on_list = lambda: change(cut, status="loading", restarts=2, last_error=CRASHED) if asked() else None
    counts: list[int] = []

    def asked() -> bool:
        counts.append(1)
        return len(counts) > 2

    assert (await command("chat", "Hi", "--worker", cut.urls["worker"])).stderr == REASON


@pytest.mark.parametrize("hive", ["http://127.0.0.1:1", None])
async def test_an_address_that_no_hive_knows_keeps_the_old_advice(cut: Fleet, command: Command, hive: str | None):
    cut.workers = {"w2": a_worker("w2", url="http://127.0.0.1:9", status="loading", last_error=CRASHED)}
    more = ("--hive", hive) if hive else ()
    result = await command("chat", "Hi", "--worker", cut.urls["worker"], *more)
    assert result.exit_code == 1 and OLD_ADVICE in result.stderr and "SIGILL" not in result.stderr


async def test_a_conversation_goes_on_with_a_worker_that_serves(cut: Fleet, command: Command):
    def on_cut() -> None:
        crash(cut)
        cut.workers["w2"] = a_worker("w2", url=cut.urls["worker"])
        cut.cut_answer = False

    cut.on_cut = on_cut
    result = await command("chat", stdin="One\nTwo\n")
    assert result.exit_code == 0 and REASON in result.stderr
    assert result.stdout.count("Hello there, tester.") == 2
    last = cut.bodies[-1]
    assert isinstance(last, ChatRequest) and [message.content for message in last.messages] == ["Two"]


async def test_start_tells_of_a_crash_while_it_waits(fleet: Fleet, command: Command):
    loading = {"status": WorkerStatus.LOADING, "restarts": 1, "last_error": CRASHED}
    fleet.worker_steps = [loading, loading | {"restarts": 2}]
    result = await command("workers", "start", "hf:o/r")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("it is started again: ended by signal 4 (SIGILL)\nBuild the wheels anew.\n") == 1
