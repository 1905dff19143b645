from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from llama_orch.queen import main
from llama_orch.queen.settings import QueenSettings
from llama_orch.queen.store import damage


def test_what_is_whole_stays_where_it_is(tmp_path: Path):
    path = tmp_path / "q.sqlite"
    assert damage.set_aside_if_damaged(path, "") is None
    path.touch()
    assert damage.set_aside_if_damaged(path, "") is None
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE a (b)")
    assert damage.set_aside_if_damaged(path, "") is None
    assert [one.name for one in tmp_path.iterdir()] == ["q.sqlite"]


def test_a_database_that_is_in_use_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "q.sqlite"
    connect = sqlite3.connect
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("CREATE TABLE a (b)")
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            damage.set_aside_if_damaged(path, "")
    assert path.exists()


def test_an_sqlite_that_is_too_old_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(damage, "LEAST_SQLITE", (99, 1))
    with pytest.raises(SystemExit):
        main.prepare(QueenSettings(project_dir=tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"SQLite is {sqlite3.sqlite_version} and needs to be 99.1: run the queen by Python 3.11" in line
