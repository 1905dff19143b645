from __future__ import annotations

import os
from pathlib import Path

from llama_orch.contract.process import FAILURE_FILE
from llama_orch.hive import atomic, worker_ending


def test_what_a_stranger_wrote_is_read_where_it_is_a_small_file(tmp_path: Path):
    (tmp_path / "file").write_text('{"a": 1}')
    assert atomic.read_foreign_json(tmp_path / "file", 8) == {"a": 1}
    assert atomic.read_foreign_json(tmp_path / "file", 7) is None
    (tmp_path / "deep").write_text("[" * 100_000)
    assert atomic.read_foreign_json(tmp_path / "deep", 1_000_000) is None


def test_nothing_else_is_read_or_waited_for(tmp_path: Path):
    (tmp_path / "file").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "gone", "."):
        assert atomic.read_foreign_json(tmp_path / name, 100) is None


def test_a_worker_that_makes_its_reason_a_pipe_holds_nobody_up(tmp_path: Path):
    path = tmp_path / FAILURE_FILE
    path.parent.mkdir()
    os.mkfifo(path)
    assert worker_ending.known_failure(tmp_path) is None
