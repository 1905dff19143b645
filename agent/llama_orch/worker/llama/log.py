"""What llama.cpp says: warnings go to the worker's log, and the last errors tell why a model cannot be loaded."""

from __future__ import annotations

import logging
from collections import deque

from ..generation import CannotServe

log = logging.getLogger("llama.cpp")

# enum ggml_log_level of ggml.h: none, debug, info, warn, error, and "goes on with the line before".
_WARN, _ERROR, _CONTINUED = 3, 4, 5

_TRUNCATED = ("not within the file bounds", "failed to read", "unexpectedly reached end", "corrupted or incomplete")
_NO_MEMORY = ("bad_alloc", "failed to allocate", "unable to allocate", "out of memory", "cannot allocate")


class LlamaLog:
    """Receives llama.cpp's log lines, from any thread."""

    def __init__(self) -> None:
        self._level = 0
        self._errors: deque[str] = deque(maxlen=50)

    def receive(self, level: int, text: bytes) -> None:
        """One piece of log text."""
        if level != _CONTINUED:
            self._level = level
        line = text.decode(errors="replace").rstrip()
        if not line or self._level < _WARN:
            return
        if self._level >= _ERROR:
            self._errors.append(line)
        log.log(logging.ERROR if self._level >= _ERROR else logging.WARNING, "%s", line)

    def last_error_of(self, part: str) -> str:
        """The last error that names this part of llama.cpp, "" where there is none."""
        return next((line for line in reversed(self._errors) if part in line), "")

    def why_not_loaded(self) -> CannotServe:
        """The failure that the last errors speak of."""
        said = " ".join(self._errors).lower()
        if any(sign in said for sign in _NO_MEMORY):
            return no_memory()
        if any(sign in said for sign in _TRUNCATED):
            return CannotServe(
                "model_truncated",
                "the model's file ends before the data that its header promises",
                "delete the model and download it again",
            )
        return CannotServe(
            "model_unreadable",
            "llama.cpp cannot load the model's file; its reason is in the worker's log",
            "check that it is a whole GGUF file of an architecture that this version of llama.cpp knows",
        )


def no_memory() -> CannotServe:
    """The failure of a model whose weights or context do not fit."""
    return CannotServe(
        "out_of_memory",
        "there is not enough memory for the model and its context",
        "lower ctx_per_slot, choose a smaller quantisation, or stop other workers",
    )
