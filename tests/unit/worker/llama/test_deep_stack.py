"""Room on the stack, and the texts that would take too much of it."""

from __future__ import annotations

import ctypes
import threading

import pytest

from llama_orch.worker.generation import TextRefused
from llama_orch.worker.llama import deep_stack


def test_others_keep_their_stacks():
    before = threading.stack_size()
    assert deep_stack.with_room_for(100, threading.current_thread) is threading.current_thread()
    assert deep_stack.with_room_for(100_000, threading.current_thread) is not threading.current_thread()
    assert threading.stack_size() == before


def stack_bytes() -> int:
    """What the C library gave this thread."""
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    attributes, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    assert libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes) == 0
    libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    return size.value


@pytest.mark.parametrize("characters", [1000, 30_000, 1_000_000])
def test_the_stack_has_room_for_a_match_of_all_characters(characters: int):
    # Measured: 377 bytes for each, with the sizes that GCC 12 gives to libstdc++'s frames.
    assert deep_stack.with_room_for(characters, stack_bytes) >= 2 * 377 * characters


def test_errors_come_back():
    with pytest.raises(ZeroDivisionError):
        deep_stack.with_room_for(10_000, lambda: 1 / 0)


def test_no_memory_for_a_stack_is_told(monkeypatch: pytest.MonkeyPatch):
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(TextRefused, match="no memory"):
        deep_stack.with_room_for(10_000, lambda: None)


LONG = deep_stack.MOST_RUN + 1


@pytest.mark.parametrize("run", ["a", "A", " ", "\n", "1", "!", "ä", "字", "e\u0301", "\u00a0", "_", "\x00"])
def test_a_run_that_is_too_long_is_refused(run: str):
    text = (run * LONG)[:LONG]
    deep_stack.check(text[1:], "gpt-4o")
    around = "-" if run.isspace() else " "
    with pytest.raises(TextRefused, match=rf"run of {LONG} characters.*at most {deep_stack.MOST_RUN}.*break it up"):
        deep_stack.check(f"1{around}{text}{around}1", "gpt-4o")


def test_usual_texts_are_taken_however_long():
    deep_stack.check("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 15_000, "gpt-4o")
    deep_stack.check("QWxhZGRpbjpvcGVuIHNlc2FtZQ0K/+9" * 30_000, "gpt-4o")
    with pytest.raises(TextRefused, match="characters long"):
        deep_stack.check("a " * deep_stack.MOST_CHARACTERS, "gpt-4o")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("exaone-moe", "many words " * 10_000),
        ("whitespace", "QWxhZGRpbjpvcGVuIHNlc2FtZQ0K" * 3000),
        ("superbpe", "1" * 8000),
        ("superbpe", ("1" * 4000 + " ") * 10),
    ],
)
def test_kinds_with_longer_matches_take_less(kind: str, text: str):
    deep_stack.check(text, "gpt-4o")
    with pytest.raises(TextRefused):
        deep_stack.check(text, kind)
