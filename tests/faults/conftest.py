"""Tells at the end of a run which faults happened and how long each took, also where all went well."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = f"{Path(__file__).parent.relative_to(Path(__file__).parents[2])}/"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With pytest-xdist it is the process that counts which tells."""
    for report in terminalreporter.getreports("passed"):
        if report.nodeid.startswith(HERE) and report.capstdout:
            terminalreporter.section(report.nodeid)
            terminalreporter.write_line(report.capstdout.rstrip())
