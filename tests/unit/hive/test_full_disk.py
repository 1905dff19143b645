"""What a disk without room, or a process that was killed, leaves beside the files of workers: nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llama_orch.base import files, tokens
from llama_orch.contract.process import FAILURE_FILE, SPEC_FILE
from llama_orch.hive import shim
from llama_orch.hive.workers import ending, launch
from llama_orch.hive.workers.records import RECORD_FILE, WorkerRecords


def test_a_worker_that_makes_its_reason_a_pipe_holds_nobody_up(tmp_path: Path):
    path = tmp_path / FAILURE_FILE
    path.parent.mkdir()
    os.mkfifo(path)
    assert ending.known_failure(tmp_path) is None


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.usefixtures("full_disk")
def test_what_a_full_disk_cut_off_is_taken_away_at_once(tmp_path: Path):
    shim.write(str(tmp_path), "ended.json", {"exit_code": 0})
    with pytest.raises(OSError, match="No space left"):
        tokens.make_token_file(tmp_path / "token")
    assert list(tmp_path.iterdir()) == []


def test_what_an_agent_that_is_gone_had_begun_is_taken_away_and_nothing_of_a_shims(tmp_path: Path):
    folder = tmp_path / "workers" / "w1"
    folder.mkdir(parents=True)
    stay = ["record.json", shim.temporary_name(shim.ENDED_FILE), ".hidden"]
    for name in (*stay, files.begun(RECORD_FILE), files.begun(SPEC_FILE), files.begun(shim.LAUNCH_FILE)):
        (folder / name).touch()
    WorkerRecords(tmp_path).load()
    assert sorted(path.name for path in folder.iterdir()) == sorted(stay)


def test_what_a_shim_had_begun_goes_before_the_next_start(tmp_path: Path):
    for name in (shim.PROCESS_FILE, shim.ENDED_FILE):
        (tmp_path / shim.temporary_name(name)).touch()
    launch.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
