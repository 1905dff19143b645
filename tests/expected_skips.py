"""The tests that may be skipped in CI, and why. There (`CI=true`) any other skip is a failure.

A skip is a check that nobody made: on a developer's machine that is told at the end of the run, in CI nobody reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class ExpectedSkip:
    """`test` is the id of a file, a class, a function or one of its cases; `reason` is a part of what the skip says."""

    test: str
    reason: str
    why: str

    def covers(self, node_id: str, said: str) -> bool:
        """Whether this is the skip of that test."""
        within = node_id == self.test or node_id.startswith((f"{self.test}::", f"{self.test}["))
        return within and self.reason in said


EXPECTED = (
    ExpectedSkip(
        "tests/integration/hive/test_hive_gpus.py::test_a_gpu_that_the_build_cannot_use_is_refused_and_never_replaced",
        "was built with CUDA",
        "such a build can use the GPU; CI's own is the wheelhouse's, which has CUDA apart",
    ),
    ExpectedSkip(
        "tests/unit/web/test_landlock.py::test_a_process_that_is_restricted_keeps_what_is_allowed",
        "the kernel's Landlock is older",
        "a kernel has the versions up to its own; what each of them lacks is a pure test beside it",
    ),
    ExpectedSkip(
        "tests/hostile/test_confinement.py::test_it_reaches_its_model_and_nothing_else",
        "the kernel has no Landlock",
        "CI's kernel decides; that a worker goes on without it, and says so, is tested without a kernel's help",
    ),
    ExpectedSkip(
        "tests/hostile/test_confinement.py::test_a_worker_on_a_gpu_may_name_its_threads",
        "the kernel has no Landlock",
        "as above",
    ),
    ExpectedSkip(
        "tests/gpu/test_gpu.py",
        "no NVIDIA GPU here",
        "`make test-gpu` runs it where there is one; docs/gpu.md says where it ran",
    ),
    ExpectedSkip(
        "tests/integration/worker/test_processors.py::test_a_library_computes_on_a_processor_that_has_no_more_than_it_needs",
        "needs a processor that has it, which no emulator here does",
        "qemu-user emulates neither AVX-512 nor AMX; what the compiler made of AMX is read in the library itself",
    ),
)


class NoOtherSkips:
    """Plugin of pytest: a skip that nothing in `expected` covers becomes a failure.

    Reports are changed where they are made. With pytest-xdist that is each of its processes, and the one that counts
    gets them as they are then.
    """

    def __init__(self, expected: Sequence[ExpectedSkip]) -> None:
        self._expected = expected

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        """A test or its fixture said so, or a mark of the test."""
        report = yield
        self._judge(report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Iterator[None]:
        """A whole file said so while it was imported."""
        report = yield
        self._judge(report)
        return report

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if any(one.covers(report.nodeid, said) for one in self._expected):
            return
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped, which in CI is a failure: {said}\n"
            "Give CI what the test needs (for Debian packages: tests/hosts/packages.txt), "
            "or name the skip in tests/expected_skips.py."
        )
