"""A download's process that dies in the middle of a line, or says what is none: a crash, tried again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_orch.base import backoff, child
from llama_orch.hive.models.downloads import run
from llama_orch.hive.models.downloads.lines import Progress
from llama_orch.hive.models.hub.description import FetchOrder, HubFile, Resolved
from llama_orch.hive.problems import Failed

READY = """print('{"event": "ready"}')"""
# Stands for the real child's Python: runs what stands under the number of the time that it was started.
PYTHON = """#!/bin/sh
cd "$(dirname "$0")"
printf . >> starts
exec {python} "$(wc -c < starts | tr -d ' ')"
"""


@pytest.fixture
def order(tmp_path: Path) -> FetchOrder:
    files = [HubFile(name="m.gguf", size=5, etag="a" * 64)]
    model = Resolved(repo="org/repo", revision="main", commit="c" * 40, filename="m.gguf", files=files)
    return FetchOrder(endpoint="", token=None, cache=tmp_path, model=model)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=run.interpreter()))
    python.chmod(0o700)
    monkeypatch.setattr(run, "interpreter", lambda: str(python))
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    return tmp_path


BROKEN = {
    "half a line": """import os, signal
print('{"event": "downlo', end="", flush=True); os.kill(os.getpid(), signal.SIGKILL)""",
    "nothing": "",
    "no JSON": "print('Segmentation fault')",
    "no object": "print('[1]')",
    "no event of ours": """print('{"event": "queued", "done": 1}')""",
    "no event at all": """print('{"done": 1}')""",
    "no number": """print('{"event": "downloading", "done": "all"}')""",
    "no problem": """print('{"event": "failed", "problem": "disk", "retry": true}')""",
    "too long": f"print('x' * {2 * child.LONGEST_LINE})",
    "no text": "import sys; sys.stdout.buffer.write(b'\\xff\\n')",
}


@pytest.mark.parametrize("program", BROKEN.values(), ids=BROKEN)
async def test_what_is_no_whole_line_is_a_crash_and_is_tried_again(programs: Path, order: FetchOrder, program: str):
    for number, text in enumerate([program, program, READY], 1):
        (programs / str(number)).write_text(text)
    await run.until_ready(order, lambda _: None, attempts=3, stall_s=30)
    assert (programs / "starts").stat().st_size == 3
    for number in (4, 5):
        (programs / str(number)).write_text(program)
    with pytest.raises(Failed, match="the download's process") as error:
        await run.until_ready(order, lambda _: None, attempts=2, stall_s=30)
    assert (error.value.problem.code, error.value.retry) == ("download_failed", True)


async def test_a_line_longer_than_64_kib_is_taken_whole(programs: Path, order: FetchOrder):
    text = "m" * 200_000
    problem = {"event": "failed", "problem": {"code": "disk_full", "message": text}, "retry": False}
    (programs / "1").write_text(f"print({json.dumps(problem)!r})")
    with pytest.raises(Failed, match="mmm") as error:
        await run.until_ready(order, lambda _: None, attempts=3, stall_s=30)
    assert error.value.problem.message == text


async def test_progress_is_told(programs: Path, order: FetchOrder):
    seen: list[Progress] = []
    lines = ['{"event": "started"}', '{"event": "downloading", "done": 3}', '{"event": "verifying", "done": 5}']
    (programs / "1").write_text("\n".join(f"print({line!r})" for line in lines) + f"\n{READY}")
    await run.until_ready(order, seen.append, attempts=1, stall_s=30)
    assert [(one.event, one.done) for one in seen] == [("downloading", 3), ("verifying", 5)]


async def test_a_process_that_cannot_be_started_is_tried_again(
    order: FetchOrder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    monkeypatch.setattr(run, "interpreter", lambda: str(tmp_path / "missing"))
    with pytest.raises(Failed, match="cannot be started") as error:
        await run.until_ready(order, lambda _: None, attempts=2, stall_s=30)
    assert error.value.retry
