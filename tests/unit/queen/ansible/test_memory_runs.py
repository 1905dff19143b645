"""The runs that other tests take for the real ones do what those do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.support.memory_runs import MemoryRuns, Task
from tests.support.runs_contract import HOST, RunsContract


class Memory:
    """Playbooks that are nowhere but in memory."""

    def __init__(self) -> None:
        self.runs = MemoryRuns(HOST)

    def write(self, playbook: str, tasks: Sequence[Task]) -> None:
        self.runs.playbooks[playbook] = tasks


@pytest.fixture
def place() -> Memory:
    return Memory()


class TestMemoryRuns(RunsContract):
    """What runs do, in memory."""
