"""What is done about a database of the queen's that is damaged: it is set aside, and she starts with an empty one."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path

from llama_orch.contract.common import Problem

log = logging.getLogger(__name__)

# Under Python 3.12 and newer the times in DBOS's tables are `unixepoch('subsec')`, which older ones do not know.
LEAST_SQLITE = (3, 42) if sys.version_info >= (3, 12) else (3, 0)
# https://www.sqlite.org/rescode.html; all else that is wrong with a file passes, or is for a person to mend.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def set_aside_if_damaged(path: Path, holds: str) -> Problem | None:
    """Rename a database that SQLite cannot read, with its journal, and tell what was done.

    `holds` says what was in it. Raises sqlite3.Error where the file cannot be looked at.
    """
    reason = _damage(path)
    if reason is None:
        return None
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            part = path.with_name(path.name + suffix)
            part.rename(path.with_name(f"{path.name}.damaged-{at}{suffix}"))
    problem = Problem(
        code="database_damaged",
        message=f"{path.name} was damaged ({reason}) and is set aside as {path.name}.damaged-{at}; {holds}",
        what_to_do="look at the disk of data_dir; `sqlite3 FILE .recover` saves what can be saved",
    )
    log.error("%s: %s", problem.message, problem.what_to_do)
    return problem


def _damage(path: Path) -> str | None:
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in _DAMAGED:
            return str(error)
        raise
    return None if answer == "ok" else str(answer).splitlines()[0][:200]
