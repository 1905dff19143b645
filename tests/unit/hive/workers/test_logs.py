from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from llama_orch.hive.workers import logs

BEGIN = "2026-01-02 03:04:05,678 INFO llama_orch.worker.process [-] worker w1 listens on 127.0.0.1 port 8100\n"
ASSERTED = "/tmp/a build/ggml/src/ggml-cpu/ops.cpp:135: GGML_ASSERT(ne0 % 2 == 0) failed\n"
TRACE = "".join(f"/opt/x/libggml-base.so.0(ggml_abort+0x{n:x})[0x7f00]\n" for n in range(40)) + "[Thread debugging]\n"


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


def said(tmp_path: Path, log: str | bytes) -> str:
    path = tmp_path / "worker.log"
    path.write_bytes(log if isinstance(log, bytes) else log.encode())
    return logs.last_words(path, "w1")


def test_what_ggml_said_before_its_backtrace(tmp_path: Path):
    log = f"{BEGIN}llama_context: a warning\n{ASSERTED}\n{ASSERTED}{TRACE}"
    assert said(tmp_path, log) == "ops.cpp:135: GGML_ASSERT(ne0 % 2 == 0) failed"


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ("ggml.c:1234: fatal error", "ggml.c:1234: fatal error"),
        ("free(): invalid pointer", "free(): invalid pointer"),
        ("double free or corruption (out)", "double free or corruption (out)"),
        ("*** stack smashing detected ***: terminated", "*** stack smashing detected ***: terminated"),
        ("Fatal Python error: Aborted", "Fatal Python error: Aborted"),
        ("/b/x.cpp:7: cannot read /home/me/model.gguf at all", "x.cpp:7: cannot read model.gguf at all"),
    ],
)
def test_who_else_gives_up(tmp_path: Path, line: str, quoted: str):
    assert said(tmp_path, BEGIN + line + "\n") == quoted


def test_what_an_exception_says_may_be_what_a_user_asked(tmp_path: Path):
    log = (
        BEGIN + "terminate called after throwing an instance of 'std::runtime_error'\n  what():  after piece: my PIN\n"
    )
    assert said(tmp_path, log) == "terminate called after throwing an instance of 'std::runtime_error'"


def test_cuda_says_why_before_ggml_gives_up(tmp_path: Path):
    logged = "2026-01-02 03:04:05,679 ERROR llama.cpp [-] CUDA error: an illegal memory access was encountered\n"
    log = f"{BEGIN}{logged}  current device: 0, in function x\n/b/ggml-cuda.cu:98: CUDA error\n"
    assert said(tmp_path, log) == "CUDA error: an illegal memory access was encountered"


def test_an_earlier_process_is_not_quoted(tmp_path: Path):
    assert said(tmp_path, BEGIN + ASSERTED + BEGIN + "killed from outside\n") == ""


@pytest.mark.parametrize("log", ["", BEGIN, "2026-01-02 INFO x [-] /b/ggml.c:12: as somebody logged it\n"])
def test_nothing_that_says_why_is_nothing(tmp_path: Path, log: str):
    assert said(tmp_path, log) == ""
    assert logs.last_words(tmp_path / "none.log", "w1") == ""


def test_it_is_one_short_line_that_can_be_printed(tmp_path: Path):
    text = said(tmp_path, b"x" * 200_000 + b"\n" + b"/b/ggml.c:12: \x1b[31m\xff\x00\x07" + b"long " * 1000 + b"\n")
    assert len(text) == logs.MOST_SAID and text.endswith("…")
    assert text.isprintable() and text.startswith("ggml.c:12: ")
