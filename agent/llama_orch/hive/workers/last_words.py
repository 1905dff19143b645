"""What llama.cpp said before it ended its own process, found in the worker's log.

Quoted is only what is written in programs' own sources, since the API shows it: neither paths, nor the texts of
exceptions and log lines, which may hold what a user asked.
"""

from __future__ import annotations

import re
from pathlib import Path

MOST_CHARACTERS = 200
# A backtrace may follow it.
_TAIL_BYTES = 64 * 1024
_REASONS = (
    # `ggml_abort` of ggml.c, in which every GGML_ASSERT and GGML_ABORT ends: file, line, reason.
    re.compile(r"(?:/.*/)?(?P<said>[\w.+-]+\.(?:c|cc|cpp|cu|cuh|h|hpp|m|mm):\d+: .+)", re.DOTALL),
    re.compile(r"(?P<said>terminate called .+)"),
    re.compile(r"(?P<said>Fatal Python error: .+)"),
    # The C library, of memory that was damaged.
    re.compile(r"(?P<said>(?:free|malloc|calloc|realloc|munmap_chunk|double free|corrupted|malloc_consolidate)\b.+)"),
    re.compile(r"(?P<said>\*\*\* .+ \*\*\*: terminated)"),
)
# ggml-cuda.cu logs what CUDA said, and then gives up with "CUDA error" and no more.
_CUDA_GAVE_UP = re.compile(r"(?<![\w.+-])[\w.+-]++:\d+: CUDA error$")
_CUDA_SAID = re.compile(r"\b(?P<said>CUDA error: .+)")
_PATH = re.compile(r"(?<![\w.])/\S*/")


def of(log_file: Path, worker_id: str) -> str:
    """The reason that the last process of this worker gave when it gave up, as one line; "" where there is none."""
    lines = _lines(log_file, worker_id)
    said = next((text for line in reversed(lines) if (text := _reason(line))), "")
    if _CUDA_GAVE_UP.search(said):
        found = (_CUDA_SAID.search(line) for line in reversed(lines))
        said = next((match["said"] for match in found if match), said)
    text = "".join(c if c.isprintable() else " " for c in _PATH.sub("", said)).strip()
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def _lines(log_file: Path, worker_id: str) -> list[str]:
    """The log's last lines, those of the last process alone: all processes of a worker write into the same file."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    return text.rpartition(f"worker {worker_id} listens on ")[2].splitlines()


def _reason(line: str) -> str | None:
    return next((found["said"] for pattern in _REASONS if (found := pattern.fullmatch(line.strip()))), None)
