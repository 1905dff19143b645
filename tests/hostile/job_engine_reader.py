"""Reads everything that DBOS can read out of a database in which each value is a pickle that runs a command.

`python -m tests.hostile.job_engine_reader DATABASE MARKS [--as-it-was]`: a file named like the place appears under
MARKS for each pickle that was run. `--as-it-was` leaves DBOS what it is, to see that all these places are real.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import sqlite3
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from dbos import DBOS, SetWorkflowID

from llama_orch.queen.jobs import engine_records


class Command:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._mark}'",)


def planted(mark: Path) -> str:
    """A value as DBOS would have written it."""
    return base64.b64encode(pickle.dumps(Command(mark))).decode()


@DBOS.step(name="step")
def step() -> str:
    return "a step's result"


@DBOS.workflow(name="steps")
def steps() -> None:
    step()


@DBOS.workflow(name="receives")
def receives() -> None:
    DBOS.recv("topic", timeout_seconds=1)


@DBOS.workflow(name="speaks")
def speaks() -> str:
    DBOS.set_event("key", "value")
    DBOS.write_stream("key", "value")
    return "a workflow's result"


@DBOS.workflow(name="scheduled")
def scheduled(_at: datetime, _context: Any) -> None:
    pass


# How long DBOS may take to run a workflow anew.
MOST_S = 5.0
PENDING = "UPDATE workflow_status SET status = 'PENDING', owner_xid = NULL WHERE workflow_uuid = ?"


class Planter:
    """Puts a pickle in one place after the other and lets DBOS read it."""

    def __init__(self, database: Path, marks: Path) -> None:
        self._database = database
        self._marks = marks

    def change(self, statement: str, *values: str) -> None:
        """Change one row of the database behind DBOS's back."""
        with contextlib.closing(sqlite3.connect(self._database, timeout=30)) as connection, connection:
            assert connection.execute(statement, values).rowcount == 1, statement

    def plant(self, place: str, workflow: str, read: Callable[[], Any], *, whose: str = "workflow_uuid") -> None:
        """Let `table.column` of this workflow be a pickle, and the workflow's own tag say so."""
        table, column = place.partition(" ")[0].split(".")
        row = f"WHERE {whose} = ?"
        if table == "operation_outputs":
            row += " AND function_id = 1"
        self.change(f"UPDATE {table} SET {column} = ? {row}", planted(self._marks / place), workflow)
        if table not in {"workflow_input", "workflow_output", "workflow_schedules"}:
            self.change(f"UPDATE {table} SET serialization = 'py_pickle' {row}", workflow)
        elif table != "workflow_schedules":
            self.change("UPDATE workflow_status SET serialization = 'py_pickle' WHERE workflow_uuid = ?", workflow)
        # What DBOS makes of it does not matter here, only whether it was run.
        with contextlib.suppress(Exception):
            read()

    def run_again(self, workflow: str) -> Callable[[], Any]:
        """Let DBOS recover a workflow, as at its start."""

        def read() -> None:
            self.change(PENDING, workflow)
            DBOS._recover_pending_workflows(["planted"])
            until = time.monotonic() + MOST_S
            while self._status(workflow) in {"PENDING", "ENQUEUED"} and time.monotonic() < until:
                time.sleep(0.05)

        return read

    def _status(self, workflow: str) -> str:
        with contextlib.closing(sqlite3.connect(self._database, timeout=30)) as connection:
            found = connection.execute("SELECT status FROM workflow_status WHERE workflow_uuid = ?", (workflow,))
            return found.fetchone()[0]


def run(workflow_id: str, workflow: Callable[[], Any]) -> str:
    """Let a workflow write its records."""
    with SetWorkflowID(workflow_id):
        workflow()
    return workflow_id


def main() -> None:
    """Launch, let workflows write their rows, put pickles in their places, and read them all."""
    database, marks = Path(sys.argv[1]), Path(sys.argv[2])
    serializer = None
    if "--as-it-was" not in sys.argv:
        engine_records.refuse_pickles()
        serializer = engine_records.SERIALIZER
    DBOS(
        config={
            "name": "llama-orch",
            "system_database_url": f"sqlite:///{database}",
            "executor_id": "planted",
            "application_version": "1",
            "serializer": serializer,
            "log_level": "CRITICAL",
        }
    )
    DBOS.launch()
    planter = Planter(database, marks)
    plant, again = planter.plant, planter.run_again

    one = run("speaks", speaks)
    plant("workflow_events.value", one, lambda: DBOS.get_event(one, "key", timeout_seconds=1))
    plant("streams.value", one, lambda: list(DBOS.read_stream(one, "key")))
    plant("workflow_output.output", one, lambda: DBOS.retrieve_workflow(one).get_result())
    plant("workflow_input.inputs listed", one, lambda: DBOS.list_workflows(workflow_ids=[one]))
    one = run("all events", speaks)
    plant("workflow_events.value of all", one, lambda: DBOS.get_all_events(one))
    one = run("failed", steps)
    planter.change("UPDATE workflow_status SET status = 'ERROR' WHERE workflow_uuid = ?", one)
    plant("workflow_output.error", one, lambda: DBOS.retrieve_workflow(one).get_result())
    one = run("listed", steps)
    plant("operation_outputs.output listed", one, lambda: DBOS.list_workflow_steps(one))
    one = run("a step's result", steps)
    plant("operation_outputs.output", one, again(one))
    one = run("a step's error", steps)
    plant("operation_outputs.error", one, again(one))
    one = run("its arguments", steps)
    plant("workflow_input.inputs", one, again(one))

    DBOS.create_schedule(schedule_name="daily", workflow_fn=scheduled, schedule="0 0 1 1 *", context="text")
    plant("workflow_schedules.context", "daily", DBOS.list_schedules, whose="schedule_name")

    with SetWorkflowID("receives"):
        handle = DBOS.start_workflow(receives)
    DBOS.send("receives", "message", "topic")
    handle.get_result(polling_interval_sec=0.05)
    planter.change("DELETE FROM operation_outputs WHERE workflow_uuid = 'receives' AND function_name = 'DBOS.recv'")
    planter.change("UPDATE notifications SET consumed = 0 WHERE destination_uuid = 'receives'")
    plant("notifications.message", "receives", again("receives"), whose="destination_uuid")
    os._exit(0)


if __name__ == "__main__":
    main()
