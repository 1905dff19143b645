"""A queen that finds in her data folder what version 0.1.0 left there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.queen_process import REPOSITORY, QueenProcess

OLD = REPOSITORY / "tests" / "unit" / "queen" / "store" / "fixtures" / "queen-0.1.0.sql"
PYTHON = "ansible_python_interpreter: '{{ ansible_playbook_python }}'"
HOST = f"        %s: {{ansible_connection: local, {PYTHON}, hive_port: %d}}\n"
FAILS = "- name: Fail\n  ansible.builtin.fail:\n    msg: '[tried] it ran'\n"


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenProcess]:
    queen = QueenProcess(tmp_path)
    port = free_port()
    names = ("hive1", "hive2", "hive3")
    queen.hosts("all:\n  children:\n    hives:\n      hosts:\n" + "".join(HOST % (name, port) for name in names))
    queen.playbook("hive", FAILS)
    queen.data.mkdir()
    with sqlite3.connect(queen.data / "queen.sqlite") as connection:
        connection.executescript(OLD.read_text(encoding="utf-8"))
    yield queen
    queen.end()


async def test_she_shows_what_was_and_goes_on_with_jobs_that_were_open(queen: QueenProcess):
    queen.start()
    async with queen.client() as api:
        begun = await api.ended("job-3")
        assert (begun["status"], begun["error"]["code"]) == ("failed", "tried")
        assert (await api.ended("job-4"))["status"] == "cancelled"
        _, page = await api.call("GET", "/api/v1/jobs")
        assert [(job["job_id"], job["status"]) for job in page["jobs"]][2:] == [
            ("job-2", "succeeded"), ("job-1", "failed"),
        ]  # fmt: skip
        assert [event["seq"] async for event in api.events("job-1")][:2] == [1, 2]
        _, nodes = await api.call("GET", "/api/v1/nodes")
        assert nodes["problems"] == [] and nodes["nodes"][0]["hive"]["version"] == "0.1.0"
    queen.stop()
    queen.start()
    async with queen.client() as api:
        assert (await api.call("GET", "/api/v1/jobs/job-3"))[1] == begun
