"""What docs/faults.md promises is held by tests and faults that there are, and every fault holds a promise."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults import host_kinds, local_kinds

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (\d+) \|(.*)\| (.*) \|$", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"), re.MULTILINE
)
FAULTS = {fault.name for catalogue in (local_kinds.LOCAL, host_kinds.ON_HOSTS) for fault in catalogue.faults}


def test_promises_are_numbered() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, len(ROWS) + 1))


def test_what_holds_a_promise_is_there() -> None:
    tests = {
        f"{'/'.join(file.parts[-depth:])}::{name}"
        for file in (ROOT / "tests").rglob("test_*.py")
        for depth in range(1, 5)
        for name in re.findall(r"def (test_\w+)\(", file.read_text(encoding="utf-8"))
    }
    for number, _, held_by in ROWS:
        named = re.findall(r"`([^`]+)`", held_by)
        assert named, f"promise {number} is held by nothing"
        assert set(named) <= tests | FAULTS, f"promise {number}"


def test_faults_have_names_of_their_own_and_allow_for_what_they_try() -> None:
    for catalogue in (local_kinds.LOCAL, host_kinds.ON_HOSTS):
        names = [fault.name for fault in catalogue.faults]
        assert len(names) == len(set(names))
        assert all(fault.promise_s > 0 for fault in catalogue.faults)
