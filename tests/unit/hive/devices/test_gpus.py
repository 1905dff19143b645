from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.base import child
from llama_orch.contract.devices import GpuFault
from llama_orch.hive.devices import gpus
from llama_orch.queen.settings import QueenSettings


def test_the_queen_hears_of_a_driver_that_hangs_before_it_gives_the_hive_up():
    patience = QueenSettings.model_fields["probe_timeout_s"].default
    # A second for all else, and for the way.
    assert patience > gpus.PATIENCE_S + 1


# Stands for the Python of the process that asks the driver: runs what stands under the number of the start.
PYTHON = """#!/bin/sh
cd "$(dirname "$0")"
printf . >> starts
exec {python} "$(wc -c < starts | tr -d ' ')"
"""
ANSWERS = """
import sys
for _ in sys.stdin:
    print('{"status": {"available": true}, "gpus": []}', flush=True)
"""
KILLED_HALF_WAY = """
import os, signal
input()
print('{"status": {"avail', end="", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=gpus.interpreter()))
    python.chmod(0o700)
    monkeypatch.setattr(gpus, "interpreter", lambda: str(python))
    return tmp_path


async def test_one_that_is_killed_in_the_middle_of_its_line_is_asked_again(programs: Path):
    (programs / "1").write_text(KILLED_HALF_WAY)
    (programs / "2").write_text(ANSWERS)
    reader = gpus.Gpus()
    assert (await reader.read(now=True)).status.available
    await reader.close()


@pytest.mark.parametrize(
    "said", ["print('[7]')", "print('nonsense')", f"print('x' * {2 * child.LONGEST_LINE})", "print('{', end='')"]
)
async def test_what_cannot_be_read_is_no_answer_and_the_next_question_gets_one(programs: Path, said: str):
    (programs / "1").write_text(f"input(); {said}")
    (programs / "2").write_text(ANSWERS)
    reader = gpus.Gpus()
    first = await reader.read(now=True)
    assert (first.status.fault, first.status.available) == (GpuFault.NO_ANSWER, False)
    assert (await reader.read(now=True)).status.available
    await reader.close()
