"""Keeps the logs of workers from filling the disk: their processes only ever add to them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

# Of workers that are gone.
LOGS_KEPT = 50
MOST_BYTES = 32 * 1024 * 1024
KEPT_BYTES = 1024 * 1024


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
