from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llama_orch.base import files


def test_what_a_stranger_wrote_is_read_where_it_is_a_small_file(tmp_path: Path):
    (tmp_path / "file").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "file") == {"a": 1}
    (tmp_path / "large").write_text('{"a": 1}' + " " * files.MOST_BYTES)
    assert files.read_json(tmp_path / "large") is None
    (tmp_path / "deep").write_text("[" * 100_000)
    assert files.read_json(tmp_path / "deep") is None


def test_nothing_else_is_read_or_waited_for(tmp_path: Path):
    (tmp_path / "file").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "gone", "."):
        assert files.read_json(tmp_path / name) is None


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_the_mode_is_what_was_asked_for(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        for mode in (0o600, 0o644):
            files.write_text(tmp_path / "file", "a text", mode)
            assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_full_disk_cut_off_is_taken_away_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_a_link_where_it_writes_is_not_followed(tmp_path: Path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / files.begun("file")).symlink_to("theirs")
    with pytest.raises(OSError, match="symbolic links"):
        files.write_text(tmp_path / "file", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    files.write_text(tmp_path / "file", "ours")


def test_what_processes_that_are_gone_left_is_swept_and_nothing_else(tmp_path: Path):
    (tmp_path / ".making-1").mkdir()
    for name in ("file", "file.tmp", ".hidden", ".other.json.tmp", files.begun("file"), ".making-1/key"):
        (tmp_path / name).touch()
    files.sweep(tmp_path, files.begun("file"), ".making-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".other.json.tmp", "file", "file.tmp"]
    files.sweep(tmp_path, files.begun("*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "file", "file.tmp"]
    files.sweep(tmp_path / "missing", "*")
