"""llama-cpp-python's low-level binding: the only file that imports it."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import llama_cpp as _llama_cpp

from .log import LlamaLog

log = logging.getLogger(__name__)

# The binding declares C types where its functions take and give Python's own.
llama_cpp: Any = _llama_cpp
# llama.cpp calls the last callback that it was given until the process ends, and ctypes keeps no reference to it.
_log_callbacks: list[Any] = []


def library() -> ctypes.CDLL:
    """llama.cpp's library, for the functions that the binding leaves out."""
    return llama_cpp.llama_cpp._lib


class GrammarSteps:
    """Counts the steps of llama.cpp's grammars in the calling thread, and ends what takes more than it may.

    Our build of llama.cpp has functions for it (`wheelhouse/corrections.py`); another one counts nothing.
    """

    def __init__(self) -> None:
        try:
            self._allow, self._left = library().llama_orch_grammar_allow, library().llama_orch_grammar_left
        except AttributeError:
            log.warning("this build of llama.cpp does not bound what a grammar takes; build the engine anew")
            self._allow = self._left = None
            return
        self._allow.argtypes, self._allow.restype = [ctypes.c_int64], None
        self._left.argtypes, self._left.restype = [], ctypes.c_int64

    def allow(self, steps: int) -> None:
        """Let what follows take so many steps."""
        if self._allow is not None:
            self._allow(steps)

    def spent(self) -> bool:
        """Whether it would have taken more: then what came of it is wrong, and the grammar is to be thrown away."""
        return self._left is not None and self._left() < 0


def send_log_to(log: LlamaLog) -> None:
    """Let llama.cpp log there from now on."""
    callback = llama_cpp.llama_log_callback(lambda level, text, _: log.receive(level, text))
    _log_callbacks.append(callback)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
