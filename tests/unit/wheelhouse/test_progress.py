from __future__ import annotations

import os
import pty
import sys

import pytest

from llama_orch.wheelhouse import compiler, progress
from llama_orch.wheelhouse.progress import Progress


def test_a_line_tells_share_files_time_left_and_what_comes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("engine: compiling", "Python packages")

    assert shown.line(20, 80, 15) == "engine: compiling 25 % (20 of 80 files, about 45 s left); then: Python packages"
    assert shown.line(20, 80, 75) == "engine: compiling 25 % (20 of 80 files, about 4 min left); then: Python packages"
    assert shown.line(80, 80, 61) == "engine: compiling 100 % (80 of 80 files, 61 s)"
    assert shown.line(0, 80, 3) == "engine: compiling 0 % (0 of 80 files); then: Python packages"
    fetching = Progress("fetching", megabytes=True)
    assert fetching.line(12_000_000, 76_600_000, 6) == "fetching 15 % (12 of 77 MB, about 32 s left)"
    assert capsys.readouterr().err == ""


def test_something_is_said_at_once_and_a_log_is_not_flooded(capfd: pytest.CaptureFixture[str]) -> None:
    script = "print('[1/3] one'); print('note'); print('[2/3] two'); print('[3/3] three')"
    compiler.run_ninja([sys.executable, "-c", script], "engine", "the rest")

    first, *rest = capfd.readouterr().err.splitlines()
    assert first == "engine: compiling …; then: the rest"
    # The first and the last step; what came within LOG_EVERY_S of another is left out.
    assert [line.partition(",")[0] for line in rest] == ["engine: compiling 100 % (3 of 3 files"]


def test_ninjas_own_settings_do_not_change_what_is_read(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NINJA_STATUS", "%p ")
    script = "import os; print(f'[1/1] {os.environ.get(\"NINJA_STATUS\")}'); raise SystemExit(1)"

    with pytest.raises(compiler.WheelhouseError, match=r"\[1/1\] None"):
        compiler.run_ninja([sys.executable, "-c", script], "engine")
    assert "100 %" in capfd.readouterr().err


def test_on_a_terminal_one_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = pty.openpty()
    monkeypatch.setattr(progress, "_TERMINAL_EVERY_S", 0)
    monkeypatch.setenv("COLUMNS", "40")
    with os.fdopen(other, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("compiling", "and what is too long for this terminal") as shown:
            shown.show(1, 2)
            shown.show(2, 2)
    said = ""
    # A terminal hands over what has come so far.
    while not said.endswith("\n"):
        said += os.read(main, 4096).decode()
    os.close(main)

    assert said.count("\n") == 1 and said.endswith("\n")
    parts = said.split("\r")
    assert all(len(part.rstrip()) < 40 for part in parts)
    assert "50 %" in said and "100 %" in said
