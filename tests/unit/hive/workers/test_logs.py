from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from llama_orch.hive.workers import logs


def test_a_log_that_grew_too_long_begins_anew_and_its_end_is_kept(tmp_path: Path):
    log, small = tmp_path / "worker-a.log", tmp_path / "worker-b.log"
    small.write_text("short\n")
    with log.open("ab") as worker:
        worker.truncate(logs.MOST_BYTES)
        worker.write(b"the last line\n")
        worker.flush()
        logs.cut(tmp_path)
        worker.write(b"the next line\n")
    assert log.read_bytes() == b"the next line\n"
    kept = (tmp_path / "worker-a.log.1").read_bytes()
    assert len(kept) == logs.KEPT_BYTES
    assert kept.endswith(b"the last line\n")
    assert small.read_text() == "short\n"
    logs.cut(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_oldest_logs_of_workers_that_are_gone_are_deleted(tmp_path: Path):
    for number in range(logs.LOGS_KEPT + 3):
        path = tmp_path / f"worker-{number}.log"
        path.touch()
        os.utime(path, (number, number))
    (tmp_path / "worker-1.log.1").touch()
    logs.prune(tmp_path, {"0"})
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == logs.LOGS_KEPT + 1
    assert "worker-0.log" in left
    assert not left & {"worker-1.log", "worker-1.log.1", "worker-2.log"}


def test_a_log_on_a_full_disk_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with (tmp_path / "worker-a.log").open("wb") as log:
        log.truncate(logs.MOST_BYTES + 1)
    logs.cut(tmp_path)
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("worker-a.log", 0)]


def test_a_log_that_another_deleted_meanwhile_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "worker-a.log").touch()
    found = tmp_path.glob("worker-*.log")
    monkeypatch.setattr(Path, "glob", lambda *_: [tmp_path / "worker-gone.log", *found])
    logs.prune(tmp_path, set())
    assert [path.name for path in tmp_path.iterdir()] == ["worker-a.log"]
