"""For all tests: what they run on is told first, and in CI none may be skipped that is not meant to be."""

from __future__ import annotations

import os

import pytest

from . import machine
from .expected_skips import EXPECTED, NoOtherSkips


def pytest_report_header() -> list[str]:
    """Printed by the process that counts, once."""
    return machine.describe()


def pytest_configure(config: pytest.Config) -> None:
    """Each process of pytest-xdist comes here too."""
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(NoOtherSkips(EXPECTED))
