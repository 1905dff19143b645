"""Files of the queen that are there whole or not at all, and nothing half-written beside them, whatever a disk does."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace `path` by a file with this text and mode: written beside it, flushed to the disk, renamed.

    Where that fails the old file stays and what was written goes. Raises OSError.
    """
    temporary = temporary_of(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # The same mode whatever the umask is.
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        # A full disk gets back what little there was.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """Where the text of `path` is while it is written. Ansible passes over names that begin with a dot."""
    return path.with_name(f".{path.name}.tmp")


def sweep(folder: Path, *patterns: str) -> None:
    """Delete what writes and questions that were killed left in a folder: files and folders of these names."""
    for pattern in patterns:
        for left in folder.glob(pattern):
            log.info("%s is deleted: an earlier process was ended while it wrote it", left)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
