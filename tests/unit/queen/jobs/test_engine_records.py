from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import dbos
import pytest

from llama_orch.queen.jobs.engine_records import EngineRecords
from llama_orch.queen.store.database import located

TABLES = (
    "workflow_status", "operation_outputs", "workflow_events", "workflow_events_history", "streams"
)  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """With a workflow `w` of JSON, and one `other`."""
    path = tmp_path / "dbos.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for table in TABLES:
            connection.execute(f"CREATE TABLE {table} (workflow_uuid TEXT, serialization TEXT)")
        connection.execute("CREATE TABLE notifications (destination_uuid TEXT, serialization TEXT)")
        for table in ("workflow_input", "workflow_output"):
            connection.execute(f"CREATE TABLE {table} (workflow_uuid TEXT)")
        connection.execute("CREATE TABLE workflow_schedules (context TEXT)")
        for workflow in ("w", "other"):
            for table in (*TABLES, "notifications"):
                connection.execute(f"INSERT INTO {table} VALUES (?, 'portable_json')", (workflow,))
            for table in ("workflow_input", "workflow_output"):
                connection.execute(f"INSERT INTO {table} VALUES (?)", (workflow,))
        connection.execute("INSERT INTO operation_outputs VALUES ('w', NULL)")
    return path


def records_of(database: Path) -> EngineRecords:
    return EngineRecords(located(f"sqlite:///{database}"))


def left(database: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_what_is_json_stays(database: Path):
    assert records_of(database).forget_what_is_no_json() == 0
    assert (left(database, "workflow_status"), left(database, "operation_outputs")) == (2, 3)


@pytest.mark.parametrize("table", [*TABLES, "notifications"])
def test_a_workflow_with_one_record_that_is_none_goes_as_a_whole(database: Path, table: str):
    column = "destination_uuid" if table == "notifications" else "workflow_uuid"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(f"UPDATE {table} SET serialization = 'py_pickle' WHERE {column} = 'w'")
    assert records_of(database).forget_what_is_no_json() == 1
    assert {left(database, one) for one in (*TABLES, "notifications", "workflow_input", "workflow_output")} == {1}


def test_a_workflow_without_a_tag_and_all_schedules_go(database: Path):
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE workflow_status SET serialization = NULL WHERE workflow_uuid = 'w'")
        connection.execute("INSERT INTO workflow_schedules VALUES ('a pickle')")
    assert records_of(database).forget_what_is_no_json() == 1
    assert left(database, "workflow_schedules") == 0


def test_a_new_database_has_nothing_to_forget(tmp_path: Path):
    assert records_of(tmp_path / "new.sqlite").forget_what_is_no_json() == 0


def test_dbos_unpickles_in_the_one_place_that_is_replaced():
    source = Path(dbos.__file__).parent
    unsafe = re.compile(
        r"\b(?:pickle|dill|marshal|shelve|cloudpickle)\b.*\bimport\b|\bimport\b.*\b(?:pickle|dill|marshal|shelve|cloudpickle)\b"
    )
    importers = {path.name for path in source.rglob("*.py") if unsafe.search(path.read_text(encoding="utf-8"))}
    assert importers == {"_serialization.py"}
    text = (source / "_serialization.py").read_text(encoding="utf-8")
    assert re.findall(r"pickle\.(\w+)", text) == ["dumps", "loads"]
