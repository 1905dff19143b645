"""One answer of a process: whole, or asked for again, or none."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llama_orch.base import backoff, child, one_answer
from llama_orch.base.one_answer import NoAnswer
from llama_orch.hive.child_environment import child_environment
from llama_orch.hive.problems import Failed, answered

# Does what stands under the number of the time that it was started; its input is what it says last.
MODULE = """
import os, pathlib, signal, sys
folder = pathlib.Path(__file__).parent
with (folder / "starts").open("a") as file:
    file.write(".")
exec((folder / str((folder / "starts").stat().st_size)).read_text())
"""
WHOLE = """print('{"found": 7}')"""
KILLED_HALF_WAY = """print('{"fou', end="", flush=True); os.kill(os.getpid(), signal.SIGKILL)"""


class Found(BaseModel):
    found: Any


class Programs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def are(self, *programs: str) -> None:
        for number, program in enumerate(programs, 1):
            (self._folder / str(number)).write_text(program)

    def starts(self) -> int:
        return (self._folder / "starts").stat().st_size

    async def ask(self, question: bytes | None = None, within_s: float = 30) -> Any:
        environment = child_environment() | {"PYTHONPATH": str(self._folder)}
        return await one_answer.ask(
            "programs_of_a_test",
            understand=lambda said: answered(said, Found).found,
            within_s=within_s,
            environment=environment,
            question=question,
        )


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    (tmp_path / "programs_of_a_test.py").write_text(MODULE)
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    return Programs(tmp_path)


@pytest.mark.parametrize(
    "first",
    [
        KILLED_HALF_WAY,
        """print('{"fou', end="")""",
        "print('null')",
        "print('7')",
        "print('[]')",
        """print('{"other": 1}')""",
        """print('{"problem": {}}')""",
        """print('{"problem": 1, "retry": 1, "details": 3}')""",
        "sys.stdout.buffer.write(b'\\xff\\x00')",
        "print('x' * 200_000)",
    ],
)
async def test_what_is_no_whole_answer_is_asked_for_once_more(programs: Programs, first: str):
    programs.are(first, WHOLE)
    assert await programs.ask() == 7
    programs.are(first, first, first, first)
    with pytest.raises(NoAnswer):
        await programs.ask()
    assert programs.starts() == 4


@pytest.mark.parametrize(
    ("program", "status"),
    [("raise SystemExit(3)", 3), ("signal.alarm(1); signal.pause()", -14), ("os.kill(os.getpid(), 24)", -24)],
)
async def test_one_that_ended_itself_is_not_asked_again(programs: Programs, program: str, status: int):
    programs.are(program)
    with pytest.raises(NoAnswer) as error:
        await programs.ask()
    assert (error.value.answer.status, programs.starts()) == (status, 1)


async def test_one_that_says_too_much_or_nothing_in_time_is_ended(programs: Programs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_answer, "MOST_BYTES", 100_000)
    programs.are("print('x' * 1_000_000); signal.pause()", "signal.pause()")
    for within_s in (30, 0.5):
        with pytest.raises(NoAnswer) as error:
            await programs.ask(within_s=within_s)
        assert error.value.answer.status is None


async def test_the_question_comes_whole_and_a_problem_is_the_answer(programs: Programs):
    text = "x" * 1_000_000
    programs.are("import json; print(json.dumps({'found': sys.stdin.read()}))")
    assert await programs.ask(text.encode()) == text
    problem = {"problem": {"code": "gone", "message": "it is gone"}, "retry": True, "details": {"files": ["a"]}}
    programs.are("", f"print({json.dumps(problem)!r})")
    with pytest.raises(Failed, match="it is gone") as error:
        await programs.ask()
    assert (error.value.problem.code, error.value.retry, error.value.details) == ("gone", True, {"files": ["a"]})


async def test_one_whose_caller_leaves_is_ended_and_reaped(programs: Programs, tmp_path: Path):
    programs.are("(folder / 'pid').write_text(str(os.getpid())); signal.pause()")
    asking = asyncio.create_task(programs.ask())
    while not (pid := pid_in(tmp_path)):  # noqa: ASYNC110  a file tells no events
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait({asking})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # a zombie would take it


def pid_in(folder: Path) -> int | None:
    path = folder / "pid"
    return int(text) if path.exists() and (text := path.read_text()) else None


async def test_no_process_is_started_by_the_loop(programs: Programs, monkeypatch: pytest.MonkeyPatch):
    started_by: list[threading.Thread] = []
    really = subprocess.Popen

    def note(*arguments: Any, **options: Any) -> Any:
        started_by.append(threading.current_thread())
        return really(*arguments, **options)

    monkeypatch.setattr("llama_orch.base.child.subprocess.Popen", note)
    programs.are(WHOLE)
    assert await programs.ask() == 7
    assert len(started_by) == 1 and started_by[0] is not threading.main_thread()


async def test_a_process_that_nobody_waits_for_is_no_zombie():
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    process = await asyncio.to_thread(subprocess.Popen, ["/bin/sh", "-c", "exit 3"])
    child.reap_at_end(process, ended.set_result)
    assert await asyncio.wait_for(ended, 30) == 3
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    child.reap_at_end(process)
