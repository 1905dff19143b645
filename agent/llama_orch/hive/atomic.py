"""Small files that are there whole or not at all, whatever happens to the process or the machine."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace `path` by a file with this text: written beside it, flushed to the disk, renamed."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename or removal in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The JSON in a file; None where it is missing or not JSON (a power cut may leave an empty one)."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_foreign_json(path: Path, most_bytes: int) -> Any:
    """As `read_json`, of a file that somebody else may have put there: no link, pipe or device, and no larger."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > most_bytes:
            return None
        return json.loads(os.read(descriptor, most_bytes))
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(descriptor)
