from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.expected_skips import EXPECTED, ExpectedSkip

ROOT = Path(__file__).parents[2]
CONFTEST = """
from tests.expected_skips import ExpectedSkip, NoOtherSkips

def pytest_configure(config):
    expected = [
        ExpectedSkip("test_some.py::test_named", "no moon", "it is new"),
        ExpectedSkip("test_whole.py", "no tide", "nor is there a tide"),
    ]
    config.pluginmanager.register(NoOtherSkips(expected))
"""
SOME = """
import pytest

@pytest.fixture
def moon():
    pytest.skip("no moon tonight")

def test_ran(): pass

@pytest.mark.parametrize("case", ["[1]", "2"])
def test_named(moon, case): pass

def test_not_named(moon): pass

@pytest.mark.skipif(True, reason="no sun")
def test_by_mark(): pass

def test_within():
    pytest.skip("no star")

@pytest.mark.xfail(strict=True)
def test_that_must_fail(): assert False
"""
WHOLE = """
import pytest

pytest.skip("no tide", allow_module_level=True)
"""


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), *words],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTHONPATH": str(ROOT),
             "CI": "", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("alone", [True, False])
def test_a_skip_that_is_not_named_fails(tmp_path: Path, alone: bool) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(SOME)
    (tmp_path / "test_whole.py").write_text(WHOLE)

    done = run(tmp_path, *([] if alone else ["-p", "xdist", "--numprocesses=2"]))

    assert done.returncode == 1, done.stdout
    # What was skipped before the test itself began counts as an error.
    assert "1 failed, 1 passed, 3 skipped, 1 xfailed, 2 errors" in done.stdout
    for said in (
        "test_some.py::test_not_named was skipped, which in CI is a failure: Skipped: no moon tonight",
        "test_some.py::test_by_mark was skipped, which in CI is a failure: Skipped: no sun",
        "test_some.py::test_within was skipped, which in CI is a failure: Skipped: no star",
    ):
        assert said in done.stdout


@pytest.mark.parametrize("alone", [True, False])
def test_a_whole_file_that_is_skipped_and_not_named_fails(tmp_path: Path, alone: bool) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_other.py").write_text(WHOLE)

    done = run(tmp_path, *([] if alone else ["-p", "xdist", "--numprocesses=2"]))

    assert done.returncode not in {0, 5}, done.stdout
    assert "test_other.py was skipped, which in CI is a failure: Skipped: no tide" in done.stdout


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_all_tests_are_held_to_it_in_ci(tmp_path: Path, ci: str, status: int) -> None:
    (tmp_path / "test_whole.py").write_text("import pytest\n\ndef test_it():\n    pytest.skip('no tide')\n")

    done = run(tmp_path, "-p", "tests.conftest", CI=ci)

    assert done.returncode == status, done.stdout
    assert "\nprocessor: " in done.stdout


@pytest.mark.parametrize("one", EXPECTED, ids=lambda one: one.test)
def test_what_is_named_is_there(one: ExpectedSkip) -> None:
    path, *names = one.test.partition("[")[0].split("::")
    text = (ROOT / path).read_text()
    assert one.reason in text
    assert all(name in text for name in names)
