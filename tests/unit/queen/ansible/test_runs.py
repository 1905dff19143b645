"""What the queen makes of the process of a run, whatever that says and however it ends."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_orch.queen.ansible import runs as runs_module
from llama_orch.queen.ansible.lines import PlayLine, TaskLine
from llama_orch.queen.ansible.runs import ProcessRuns, RunResult, RunSpec
from llama_orch.queen.ansible.ssh import SshSetup
from tests.support.queen_process import processes_with

STATS = {"ok": {"n": 1}, "failures": {}, "dark": {}, "processed": {"n": 1}}
RESULT = json.dumps({"kind": "result", "status": "successful", "rc": 0, "stats": STATS, "output": ""})
BEGAN = json.dumps({"kind": "task", "task": "Do", "outcome": "started"})


class Place:
    """Runs whose process is a script of the test's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.child = folder / "run_child.py"
        self.lines: list[PlayLine | TaskLine] = []
        self.interrupt = asyncio.Event()
        (folder / "project").mkdir()
        monkeypatch.setattr(runs_module, "_RUN_CHILD", self.child)

    async def run(self, script: str, timeout_s: float = 300) -> RunResult:
        self.child.write_text(
            f"import os, signal, subprocess, sys, time\nspec = sys.stdin.readline()\n{script}\nsys.stdout.flush()\n"
        )
        runs = ProcessRuns(
            folder=self.folder / "runs",
            project=self.folder / "project",
            inventory=self.folder / "inventory",
            environment={"PATH": str(Path(sys.executable).parent)},
            ssh=SshSetup(self.folder / "key", self.folder / "known_hosts", 5),
            timeout_s=timeout_s,
        )
        try:
            return await runs.run(RunSpec("job-1.1", "hive", "n", {}), self.lines.append, self.interrupt)
        finally:
            assert list((self.folder / "runs").iterdir()) == []
            assert processes_with(str(self.child)) == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "garbage",
    [
        "not JSON",
        "[1]",
        "{}",
        '{"kind": "task"}',
        '{"kind": "task", "task": "x", "outcome": "started", "duration_s": "long"}',
        '{"kind": "task", "task": 5, "outcome": "melted"}',
        '{"kind": "result"}',
        '{"kind": "result", "status": "successful", "stats": {}, "output": ""}',
        "[" * 5000,
        "",
    ],
)
async def test_garbage_is_left_out_and_the_run_goes_on(place: Place, garbage: str):
    result = await place.run(f"print({BEGAN!r}); print({garbage!r}); print({BEGAN!r}); print({RESULT!r})")
    assert result.succeeded("n") and result.tasks == len(place.lines) == 2


async def test_a_line_that_is_too_long_is_left_out_and_bytes_that_are_no_text_too(place: Place):
    long = "x" * (runs_module._LINE_LIMIT + 1)  # pyright: ignore[reportPrivateUsage]
    result = await place.run(
        f'print(\'{{"kind": "play", "play": "\' + {long[0]!r} * {len(long)} + \'"}}\')\n'
        f'sys.stdout.flush(); os.write(1, b\'{{"kind": "play", "play": "\\xff"}}\\n\')\n'
        f"print({BEGAN!r}); print({RESULT!r})"
    )
    assert result.succeeded("n") and len(place.lines) == 1


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        f"sys.stdout.write({RESULT[:40]!r}); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)",
        "raise MemoryError('no room')",
        "sys.exit(0)",
        "sys.stdout.flush(); os.close(1); time.sleep(600)",
        "subprocess.Popen(['sleep', '600']); os.kill(os.getpid(), signal.SIGKILL)",
    ],
    ids=["killed", "half a line", "raises", "says nothing", "closes its pipe and lives", "leaves its pipes to another"],
)
async def test_one_that_ends_without_a_result_is_lost(place: Place, end: str):
    result = await place.run(f"print({BEGAN!r}, flush=True)\n{end}")
    assert result.lost and not result.succeeded("n") and result.tasks == 1
    if "MemoryError" in end:
        assert result.output.endswith("MemoryError: no room\n")


async def test_one_that_floods_its_complaints_is_heard_out_within_bounds(place: Place):
    result = await place.run(f"sys.stderr.write('x' * 20_000_000 + 'end'); print({RESULT!r})")
    assert result.succeeded("n") and result.output.endswith("end") and len(result.output) <= 4000


async def test_of_failures_without_end_the_last_are_kept(place: Place):
    line = {"kind": "task", "task": "t", "host": "n", "outcome": "failed", "message": "m"}
    result = await place.run(
        f"import json\nfor n in range(5000): print(json.dumps({line!r} | {{'task': str(n)}}))\nprint({RESULT!r})"
    )
    assert [failure.task for failure in result.failures] == [str(number) for number in range(4900, 5000)]


async def test_one_that_takes_too_long_is_ended_by_the_queens_own_clock(place: Place):
    result = await place.run(f"print({BEGAN!r}, flush=True); time.sleep(600)", timeout_s=0.3)
    assert (result.status, result.interrupted, result.lost) == ("timeout", False, False)


async def test_one_that_is_interrupted_is_neither_lost_nor_too_late(place: Place):
    asyncio.get_running_loop().call_later(0.3, place.interrupt.set)
    result = await place.run(f"print({BEGAN!r}, flush=True); time.sleep(600)")
    assert result.interrupted and not result.lost


async def test_no_clock_of_the_wall_ends_a_run(place: Place):
    # Ansible's runner would count by it; what it is given says nothing of a time-out.
    result = await place.run(
        f"import json\nprint(json.dumps({{'kind': 'play', 'play': ' '.join(json.loads(spec))}}))\nprint({RESULT!r})"
    )
    assert result.succeeded("n")
    (told,) = place.lines
    assert isinstance(told, PlayLine) and "timeout" not in told.play and "cmdline" in told.play


async def test_a_folder_for_sockets_does_not_stay_where_its_note_cannot_be_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    made: list[Path] = []

    def make(**_: Any) -> str:
        made.append(place.folder / "llo-1")
        made[-1].mkdir()
        return str(made[-1])

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs_module.tempfile, "mkdtemp", make)
    (place.folder / "runs/job-1.1").mkdir(parents=True)
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match="No space"):
        runs_module._control_folder(place.folder / "runs/job-1.1")  # pyright: ignore[reportPrivateUsage]
    assert made and not made[0].exists()
