from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_orch.base import locks

HOLDS = """
import sys
from pathlib import Path
from llama_orch.base import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is ended."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_what_another_process_holds_is_not_taken(path: Path, holder: subprocess.Popen[str]):
    with pytest.raises(locks.Held, match=str(path)), locks.held(path):
        raise AssertionError
    with path.open() as file:
        assert not locks.take(file)


def test_a_holder_that_is_killed_lets_go(path: Path, holder: subprocess.Popen[str]):
    holder.kill()
    with locks.held(path, 10.0):
        pass


def test_a_file_that_is_locked_keeps_what_it_holds(path: Path):
    path.write_text("data")
    with locks.held(path), path.open() as file:
        assert not locks.take(file)
    assert path.read_text() == "data" and path.stat().st_mode & 0o777 == 0o644
    with path.open() as file:
        assert locks.take(file)
