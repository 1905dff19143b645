"""Files on the controller: locks, sums, links that switch in one step."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_orch.wheelhouse.pip import say


@contextmanager
def locked(path: Path, who: str) -> Iterator[None]:
    """Hold a lock file, so that two commands at once build a thing once; the kernel frees it with its owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {who} to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def filled_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The folder; `fill` puts its content into an empty one where nobody has done so to the end."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            whole = Path(temporary, "whole")
            whole.mkdir()
            fill(whole)
            whole.rename(folder)
    return folder


def sha256(path: Path) -> str:
    """The file's sha256 sum in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_of_tree(root: Path, files: list[Path]) -> str:
    """One sum over names and contents, whatever the order, owners or times of the files."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(bytes.fromhex(sha256(path)))
    return total.hexdigest()


def point(link: Path, to: str) -> None:
    """Make a symbolic link show another place in one step, so that a reader sees the old or the new one."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(to)
    fresh.replace(link)
