"""Small files that are there whole or not at all, and nothing half-written beside them, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
# Records have a few kB, the largest of them that of a model in a thousand parts.
MOST_BYTES = 1024 * 1024


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace `path` by a file with this text and mode: written beside it, flushed to the disk, renamed.

    Where that fails the old file stays and what was written goes: a full disk needs its room. A file has one writer at
    a time. Raises OSError.
    """
    temporary = path.with_name(begun(path.name))
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # The same mode whatever the umask is.
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def begun(name: str) -> str:
    """The name of a file while it is written, beside the one with this name. Ansible passes over those with a dot."""
    return f".{name}.tmp"


def sweep(folder: Path, *patterns: str) -> None:
    """Delete what processes that are gone left in a folder: files and folders of these names, as of `glob`.

    Only who alone writes files of these names may ask for it.
    """
    for pattern in patterns:
        for left in folder.glob(pattern):
            log.info("%s is deleted: an earlier process was ended while it wrote it", left)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename or removal in it survives a power cut. Raises OSError."""
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
