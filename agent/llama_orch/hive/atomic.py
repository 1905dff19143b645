"""Small files that are there whole or not at all, whatever happens to the process or the machine."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

# Records have a few kB, the largest of them that of a model in a thousand parts.
MOST_BYTES = 1024 * 1024
# What `write_text` writes to; a worker's shim gives its own files another name.
_BEGUN = re.compile(r"\..+\.[0-9]+\.tmp")


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace `path` by a file with this text: written beside it, flushed to the disk, renamed.

    Raises OSError; then what was begun is taken away again, as a full disk needs its room.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def drop_begun(folder: Path) -> None:
    """Take away what processes that are gone had begun to write in this folder: only its one writer may ask for it."""
    for path in folder.glob(".*.tmp"):
        if _BEGUN.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename or removal in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """A small file's content. Raises OSError, also where it is a link, no regular file, or larger than that.

    Some of them lie where a worker may write, and a worker runs what strangers made.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes} bytes", str(path))
    return content


def read_json(path: Path) -> Any:
    """The JSON in a small file; None where it is missing or not JSON (a power cut may leave an empty one)."""
    try:
        return json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return None
