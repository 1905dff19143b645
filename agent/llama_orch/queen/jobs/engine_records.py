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
from sqlalchemy import URL, Connection, create_engine, inspect, text

from llama_orch.contract.common import Problem

from ..store import damage
from ..store.database import is_server

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
# Where the engine's tables are on a server: as DBOS names it.
SCHEMA = "dbos"
# The queen has no schedules, and their rows carry no tag to judge them by.
_NOT_OURS = "workflow_schedules"


class PickleRefused(Exception):
    """A row of the engine's database is a pickle, which is not read."""


def refuse_pickles() -> None:
    """From now on DBOS neither reads nor writes a pickle in this process; to be called before it is launched."""

    def refuse(*_: Any) -> NoReturn:
        raise PickleRefused(
            "the job engine's database has a row that is a pickle, which is not read: it would run what it says; "
            "look who wrote to it, and restart the queen, which deletes such rows"
        )

    for name in ("serialize", "deserialize"):
        setattr(DefaultSerializer, name, refuse)


class EngineRecords:
    """The engine's database: a file of SQLite's, or a schema on the server that has the queen's own tables."""

    def __init__(self, url: URL) -> None:
        self._url = url

    @property
    def url(self) -> str:
        """For the engine alone: it holds the password."""
        return self._url.render_as_string(hide_password=False)

    def prepare(self) -> Problem | None:
        """Make it one that the engine may read. Answers what is wrong where a file was damaged."""
        damaged = None
        if not is_server(self._url):
            path = Path(self._url.database or "")
            damaged = damage.set_aside_if_damaged(path, "jobs that were under way begin anew")
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        refuse_pickles()
        self.forget_what_is_no_json()
        return damaged

    def forget_what_is_no_json(self) -> int:
        """Delete all workflows of which any record is something else than JSON; answers how many they were.

        Raises SQLAlchemy's DatabaseError where the file is no database.
        """
        engine = create_engine(self._url)
        try:
            with engine.begin() as connection:
                found = _forget_what_is_no_json(connection)
        finally:
            engine.dispose()
        if found:
            log.warning("%d workflows of the job engine were no JSON, as version 0.1.0 wrote them: deleted", found)
        return found


def _forget_what_is_no_json(connection: Connection) -> int:
    schema = SCHEMA if is_server(connection.engine.url) else None
    there = set(inspect(connection).get_table_names(schema=schema))
    full = {table: f"{schema}.{table}" if schema else table for table in there}
    found: set[str] = set()
    for table, whose in _RECORDS.items():
        if table not in there or table in _UNTAGGED:
            continue
        # A record that holds nothing may have no tag, a workflow has always one.
        untagged = " OR serialization IS NULL" if table == "workflow_status" else ""
        query = text(f"SELECT {whose} FROM {full[table]} WHERE serialization <> :ours{untagged}")  # noqa: S608
        found |= {row[0] for row in connection.execute(query, {"ours": SERIALIZER.name()})}
    for table, whose in _RECORDS.items():
        if table in there and found:
            change = text(f"DELETE FROM {full[table]} WHERE {whose} = :one")  # noqa: S608  names of ours
            connection.execute(change, [{"one": one} for one in found])
    if _NOT_OURS in there:
        connection.execute(text(f"DELETE FROM {full[_NOT_OURS]}"))  # noqa: S608
    return len(found)
