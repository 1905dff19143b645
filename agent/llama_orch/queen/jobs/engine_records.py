"""What the durable engine may read of its own database: JSON, and nothing that runs when it is read.

DBOS 3.4 goes by the tag of each row and not by its setting: whatever serializer it was given, a row that calls itself
`py_pickle` is unpickled, which runs what the row says. Whoever can write the file, or a backup of it, would own the
queen. So its pickle serializer is replaced by a refusal, and rows that are no JSON are deleted before it starts: those
of version 0.1.0, whose open jobs begin anew from the queen's own table, and those that somebody planted.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path
from typing import Any, NoReturn

from dbos._serialization import DBOSPortableJSON, DefaultSerializer

log = logging.getLogger(__name__)

# What the queen writes, and the only thing that she reads.
SERIALIZER = DBOSPortableJSON
# Every table with records of a workflow, and the column that says whose they are.
_RECORDS = {
    "workflow_status": "workflow_uuid",
    "workflow_input": "workflow_uuid",
    "workflow_output": "workflow_uuid",
    "operation_outputs": "workflow_uuid",
    "workflow_events": "workflow_uuid",
    "workflow_events_history": "workflow_uuid",
    "streams": "workflow_uuid",
    "notifications": "destination_uuid",
}
# Records of these columns are tagged by the row of their workflow.
_UNTAGGED = {"workflow_input", "workflow_output"}
# The queen has no schedules, and their rows carry no tag to judge them by.
_NOT_OURS = "workflow_schedules"


class PickleRefused(Exception):
    """A row of the engine's database is a pickle, which is not read."""


def refuse_pickles() -> None:
    """From now on DBOS neither reads nor writes a pickle in this process; to be called before it is launched."""

    def refuse(*_: Any) -> NoReturn:
        raise PickleRefused(
            "the job engine's database has a row that is a pickle, which is not read: it would run what it says; "
            "look who wrote to dbos.sqlite, and restart the queen, which deletes such rows"
        )

    for name in ("serialize", "deserialize"):
        setattr(DefaultSerializer, name, refuse)


def forget_what_is_no_json(database: Path) -> int:
    """Delete all workflows of which any record is something else than JSON; answers how many they were.

    Raises sqlite3.DatabaseError where the file is no database.
    """
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        there = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        found: set[str] = set()
        for table, whose in _RECORDS.items():
            if table not in there or table in _UNTAGGED:
                continue
            # A record that holds nothing may have no tag, a workflow has always one.
            untagged = " OR serialization IS NULL" if table == "workflow_status" else ""
            rows = connection.execute(
                f"SELECT {whose} FROM {table} WHERE serialization <> ?{untagged}",  # noqa: S608  names of ours
                (SERIALIZER.name(),),
            )
            found |= {row[0] for row in rows}
        for table, whose in _RECORDS.items():
            if table in there:
                connection.executemany(f"DELETE FROM {table} WHERE {whose} = ?", [(one,) for one in found])  # noqa: S608
        if _NOT_OURS in there:
            connection.execute(f"DELETE FROM {_NOT_OURS}")  # noqa: S608
    if found:
        log.warning("%d workflows of the job engine were no JSON, as version 0.1.0 wrote them: deleted", len(found))
    return len(found)
