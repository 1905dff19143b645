from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llama_orch.contract.process import FAILURE_FILE
from llama_orch.hive import atomic, shim, worker_ending, worker_launch
from llama_orch.web import auth


def test_what_a_stranger_wrote_is_read_where_it_is_a_small_file(tmp_path: Path):
    (tmp_path / "file").write_text('{"a": 1}')
    assert atomic.read_json(tmp_path / "file") == {"a": 1}
    (tmp_path / "large").write_text('{"a": 1}' + " " * atomic.MOST_BYTES)
    assert atomic.read_json(tmp_path / "large") is None
    (tmp_path / "deep").write_text("[" * 100_000)
    assert atomic.read_json(tmp_path / "deep") is None


def test_nothing_else_is_read_or_waited_for(tmp_path: Path):
    (tmp_path / "file").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "gone", "."):
        assert atomic.read_json(tmp_path / name) is None


def test_a_worker_that_makes_its_reason_a_pipe_holds_nobody_up(tmp_path: Path):
    path = tmp_path / FAILURE_FILE
    path.parent.mkdir()
    os.mkfifo(path)
    assert worker_ending.known_failure(tmp_path) is None


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.usefixtures("full_disk")
def test_what_a_full_disk_cut_off_is_taken_away_at_once(tmp_path: Path):
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(tmp_path / "record.json", "{}")
    shim._write(str(tmp_path), "ended.json", {"exit_code": 0})
    with pytest.raises(OSError, match="No space left"):
        auth.make_token_file(tmp_path / "token")
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_that_is_gone_had_begun_is_taken_away_and_nothing_else(tmp_path: Path):
    stay = ["record.json", ".ended.json.tmp", ".hidden", "x.4711.tmp"]
    for name in (*stay, ".record.json.4711.tmp", ".engine.json.1.tmp"):
        (tmp_path / name).touch()
    atomic.drop_begun(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
    atomic.drop_begun(tmp_path / "missing")


def test_what_a_shim_had_begun_goes_before_the_next_start(tmp_path: Path):
    for name in (shim.PROCESS_FILE, shim.ENDED_FILE):
        (tmp_path / shim.temporary_name(name)).touch()
    worker_launch.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
