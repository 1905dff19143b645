"""The logs of workers: kept from filling the disk, and what llama.cpp said in them before it ended its own process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

# Of workers that are gone.
LOGS_KEPT = 50
MOST_BYTES = 32 * 1024 * 1024
KEPT_BYTES = 1024 * 1024

# Of what is quoted.
MOST_SAID = 200
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


def cut(log_dir: Path) -> None:
    """Begin logs anew that have grown too long, and keep their ends beside them where there is room. Raises OSError.

    A log is cut and not renamed: the worker goes on writing into the same file, always at its end.
    """
    for path in log_dir.glob("worker-*.log"):
        if path.stat().st_size <= MOST_BYTES:
            continue
        kept = path.with_name(path.name + ".1")
        try:
            with path.open("rb") as log, kept.open("wb") as end:
                log.seek(-KEPT_BYTES, os.SEEK_END)
                shutil.copyfileobj(log, end)
        except OSError:
            # On a full disk a log's end is worth less than the room that the log itself takes.
            kept.unlink(missing_ok=True)
        os.truncate(path, 0)


def prune(log_dir: Path, worker_ids: Collection[str]) -> None:
    """Delete the oldest logs of workers that are not among these. Raises OSError."""
    current = {f"worker-{worker_id}.log" for worker_id in worker_ids}
    # Several may be at this at the same time: what another deleted meanwhile is no log any more.
    logs: list[tuple[float, Path]] = []
    for path in log_dir.glob("worker-*.log"):
        with contextlib.suppress(FileNotFoundError):
            if path.name not in current:
                logs.append((path.stat().st_mtime, path))
    for _, path in sorted(logs)[:-LOGS_KEPT]:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".1").unlink(missing_ok=True)


def last_words(log_file: Path, worker_id: str) -> str:
    """The reason that the last process of this worker gave when it gave up, as one line; "" where there is none.

    Quoted is only what is written in programs' own sources, since the API shows it: neither paths, nor the texts of
    exceptions and log lines, which may hold what a user asked.
    """
    lines = _lines(log_file, worker_id)
    said = next((text for line in reversed(lines) if (text := _reason(line))), "")
    if _CUDA_GAVE_UP.search(said):
        found = (_CUDA_SAID.search(line) for line in reversed(lines))
        said = next((match["said"] for match in found if match), said)
    text = "".join(c if c.isprintable() else " " for c in _PATH.sub("", said)).strip()
    return text if len(text) <= MOST_SAID else text[: MOST_SAID - 1] + "…"


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
