from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.hive.workers import last_words

BEGIN = "2026-01-02 03:04:05,678 INFO llama_orch.worker.process [-] worker w1 listens on 127.0.0.1 port 8100\n"
ASSERTED = "/tmp/a build/ggml/src/ggml-cpu/ops.cpp:135: GGML_ASSERT(ne0 % 2 == 0) failed\n"
TRACE = "".join(f"/opt/x/libggml-base.so.0(ggml_abort+0x{n:x})[0x7f00]\n" for n in range(40)) + "[Thread debugging]\n"


def said(tmp_path: Path, log: str | bytes) -> str:
    path = tmp_path / "worker.log"
    path.write_bytes(log if isinstance(log, bytes) else log.encode())
    return last_words.of(path, "w1")


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
    assert last_words.of(tmp_path / "none.log", "w1") == ""


def test_it_is_one_short_line_that_can_be_printed(tmp_path: Path):
    text = said(tmp_path, b"x" * 200_000 + b"\n" + b"/b/ggml.c:12: \x1b[31m\xff\x00\x07" + b"long " * 1000 + b"\n")
    assert len(text) == last_words.MOST_CHARACTERS and text.endswith("…")
    assert text.isprintable() and text.startswith("ggml.c:12: ")
