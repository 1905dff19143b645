"""A queen whose files are damaged, or whose disk takes nothing: she starts, and no job runs for ever."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.queen_process import Api, QueenProcess, processes_with

PYTHON = "ansible_python_interpreter: '{{ ansible_playbook_python }}'"
HERE = f"        here: {{ansible_connection: local, {PYTHON}, hive_port: %d}}\n"
NONE = "all:\n  children:\n    hives:\n      hosts:\n"
FAILS = "- name: Fail\n  ansible.builtin.fail:\n    msg: '[tried] it ran'\n"


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenProcess]:
    queen = QueenProcess(tmp_path)
    queen.hosts(NONE + HERE % free_port())
    queen.playbook("hive", FAILS)
    yield queen
    queen.end()


async def provisioned(api: Api) -> str:
    """The id of a job that runs the playbook."""
    return (await api.call("POST", "/api/v1/nodes/here/provision"))[1]["job_id"]


async def problems(api: Api) -> list[str]:
    return [problem["code"] for problem in (await api.call("GET", "/api/v1/nodes"))[1]["problems"]]


async def test_a_queen_with_damaged_databases_starts_and_says_so(queen: QueenProcess):
    queen.start()
    async with queen.client() as api:
        await api.ended(await provisioned(api))
    queen.stop()
    for name in ("queen.sqlite", "dbos.sqlite"):
        with (queen.data / name).open("r+b") as database:
            database.write(b"\xff" * 4096)
    queen.start()
    async with queen.client() as api:
        assert await problems(api) == ["database_damaged"] * 2
        assert "llama_orch_queen_problems 2.0" in (await api.call("GET", "/metrics"))[1]
        assert (await api.ended(await provisioned(api)))["error"]["code"] == "tried"
    assert len(list(queen.data.glob("*.sqlite.damaged-*Z"))) == 2
    queen.stop()
    queen.start()
    async with queen.client() as api:
        assert await problems(api) == []


async def test_a_broken_file_of_the_queens_own_is_named_and_ends_nothing(queen: QueenProcess):
    queen.registered.write_text("")
    queen.hosts(NONE + HERE.replace("hive_port", 'ansible_ssh_common_args: "-o \'x", hive_port') % 1)
    queen.start()
    async with queen.client() as api:
        listed = (await api.call("GET", "/api/v1/nodes"))[1]
        (problem,) = listed["problems"]
        assert (problem["code"], "00-registered.yml" in problem["message"]) == ("inventory_broken", True)
        queen.registered.unlink()
        await api.until(lambda nodes: "ansible_ssh_common_args of here" in str(nodes["problems"]), "/api/v1/nodes")
        queen.hosts(NONE + HERE % 1)
        listed = await api.until(lambda nodes: nodes["problems"] == [], "/api/v1/nodes")
        assert [node["node_name"] for node in listed["nodes"]] == ["here"]


async def test_a_host_that_leaves_the_inventory_during_its_job_and_comes_back(queen: QueenProcess, tmp_path: Path):
    marker = f"leaves-{tmp_path.name}"
    hosts = NONE + HERE % free_port()
    waits = f"- name: Wait\n  ansible.builtin.command:\n    argv: [sh, -c, 'sleep 60; : {marker}']\n"
    queen.playbook("hive", waits + FAILS)
    queen.start()
    async with queen.client() as api:
        job_id = await provisioned(api)
        while not (running := processes_with(f"sleep 60; : {marker}")):  # noqa: ASYNC110  a process tells no event
            await asyncio.sleep(0.05)
        queen.hosts(NONE)
        await api.until(lambda nodes: nodes["nodes"] == [], "/api/v1/nodes")
        queen.hosts(hosts)
        await api.until(lambda nodes: len(nodes["nodes"]) == 1, "/api/v1/nodes")
        assert (await api.node("here"))["status"] == "registered"
        await api.call("POST", f"/api/v1/jobs/{job_id}/cancel")
        assert (await api.ended(job_id, timeout=20))["status"] == "cancelled"
        assert (await api.node("here"))["status"] == "failed"
        assert running
        assert processes_with(marker) == []


async def test_a_job_whose_end_cannot_be_written_ends_when_it_can(queen: QueenProcess):
    queen.playbook("hive", "- name: Wait\n  ansible.builtin.wait_for:\n    timeout: 4\n" + FAILS)
    queen.start()
    async with queen.client() as api:
        job_id = await provisioned(api)
        await api.until(lambda job: job["status"] == "running", f"/api/v1/jobs/{job_id}")
        with contextlib.closing(sqlite3.connect(queen.data / "queen.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            while f"job {job_id} cannot be finished (attempt 1)" not in queen.log():  # noqa: ASYNC110  a log tells no event
                await asyncio.sleep(0.2)
            other.execute("ROLLBACK")
        ended = await api.ended(job_id)
        assert (ended["status"], ended["error"]["code"]) in {("failed", "tried"), ("failed", "internal_error")}
        assert (await api.node("here"))["status"] == "failed"
        assert (await api.ended(await provisioned(api)))["error"]["code"] == "tried"


async def test_an_open_job_that_nothing_works_on_is_taken_up(queen: QueenProcess):
    queen.start()
    async with queen.client() as api:
        await api.ended(await provisioned(api))
        with contextlib.closing(sqlite3.connect(queen.data / "queen.sqlite")) as store, store:
            store.execute(
                "INSERT INTO jobs (job_id, kind, node_name, status, percentage, created_at, correlation_id, force,"
                " had_password) SELECT 'job-lost', kind, node_name, 'queued', 0, created_at, 'c', 0, 0 FROM jobs"
            )
        assert (await api.ended("job-lost"))["error"]["code"] == "tried"
