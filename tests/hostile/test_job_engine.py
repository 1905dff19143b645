"""A job engine's database that somebody wrote to, as in a backup that was tampered with: nothing in it is run."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.queen.test_queen_jobs import LOCAL, MAKE_TOKEN, TOKEN
from tests.support.fake_hive import fake_hive
from tests.support.queen_process import REPOSITORY, QueenProcess
from tests.support.serving import serving

from . import job_engine_reader

READER_SECONDS = 120
# Everything that DBOS takes out of its database and does not take as it stands.
PLACES = {
    "notifications.message",
    "operation_outputs.error",
    "operation_outputs.output",
    "operation_outputs.output listed",
    "streams.value",
    "workflow_events.value",
    "workflow_events.value of all",
    "workflow_input.inputs",
    "workflow_input.inputs listed",
    "workflow_output.error",
    "workflow_output.output",
    "workflow_schedules.context",
}


def read_all(folder: Path, *arguments: str) -> set[str]:
    """The places whose pickle was run."""
    marks = folder / "marks"
    marks.mkdir()
    subprocess.run(
        [sys.executable, "-m", job_engine_reader.__name__, str(folder / "dbos.sqlite"), str(marks), *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY / 'agent'}:{REPOSITORY}"},
        capture_output=True,
        timeout=READER_SECONDS,
        check=True,
    )
    return {path.name for path in marks.iterdir()}


def test_a_planted_pickle_is_run_nowhere(tmp_path: Path):
    assert read_all(tmp_path) == set()


def test_each_of_these_places_would_run_one(tmp_path: Path):
    assert read_all(tmp_path, "--as-it-was") == PLACES


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenProcess]:
    queen = QueenProcess(tmp_path)
    yield queen
    queen.end()


@pytest.fixture
async def hive() -> AsyncIterator[int]:
    async with serving(fake_hive("here", TOKEN)) as url:
        yield int(url.rpartition(":")[2])


async def test_a_queen_with_planted_rows_starts_and_her_open_job_begins_anew(queen: QueenProcess, hive: int):
    marks = queen.folder / "marks"
    marks.mkdir()
    queen.hosts(LOCAL % hive)
    queen.playbook("hive", MAKE_TOKEN)
    queen.start()
    async with queen.client() as api:
        _, ended = await api.call("POST", "/api/v1/nodes/here/provision")
        assert (await api.ended(ended["job_id"]))["status"] == "succeeded"
        queen.playbook("hive", "- name: Wait for the end\n  ansible.builtin.pause:\n    minutes: 5\n")
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        await api.until(lambda job: job["percentage"] > 0, f"/api/v1/jobs/{job['job_id']}")
    queen.stop(signal.SIGKILL)

    database = queen.data / "dbos.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        assert {row[0] for row in connection.execute("SELECT serialization FROM workflow_status")} == {"portable_json"}
        # As version 0.1.0 wrote them; in place of each value, what an attacker would put there.
        for table, column in (
            ("workflow_input", "inputs"),
            ("workflow_output", "output"),
            ("operation_outputs", "output"),
        ):
            connection.execute(
                f"UPDATE {table} SET {column} = ?", (job_engine_reader.planted(marks / f"{table}.{column}"),)
            )
        for table in ("workflow_status", "operation_outputs"):
            connection.execute(f"UPDATE {table} SET serialization = 'py_pickle'")
        connection.execute(
            "INSERT INTO workflow_schedules (schedule_id, schedule_name, workflow_name, schedule, context)"
            " VALUES ('s', 's', 'job', '* * * * * *', ?)",
            (job_engine_reader.planted(marks / "schedule"),),
        )
    queen.playbook("hive", MAKE_TOKEN)
    queen.start()
    async with queen.client() as api:
        assert (await api.ended(job["job_id"]))["status"] == "succeeded"
        assert (await api.node("here"))["status"] == "active"
    assert list(marks.iterdir()) == []
    assert "no JSON, as version 0.1.0 wrote them" in queen.log()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        left = connection.execute("SELECT workflow_uuid, serialization FROM workflow_status").fetchall()
    assert left == [(job["job_id"], "portable_json")], "ended ones are deleted, the open one is written as JSON"
