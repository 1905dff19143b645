"""llama-cpp-python's low-level binding: the only file that imports it."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as _llama_cpp

from .llama_log import LlamaLog

# The binding declares C types where its functions take and give Python's own.
llama_cpp: Any = _llama_cpp
# llama.cpp calls the last callback that it was given until the process ends, and ctypes keeps no reference to it.
_log_callbacks: list[Any] = []


def library() -> ctypes.CDLL:
    """llama.cpp's library, for the functions that the binding leaves out."""
    return llama_cpp.llama_cpp._lib


def send_log_to(log: LlamaLog) -> None:
    """Let llama.cpp log there from now on."""
    callback = llama_cpp.llama_log_callback(lambda level, text, _: log.receive(level, text))
    _log_callbacks.append(callback)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
