"""The queen on PostgreSQL: her own tables and the job engine's on a server that may go and come back."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from llama_orch.contract.errors import NotReady
from llama_orch.queen.jobs.engine_records import EngineRecords
from llama_orch.queen.store import schema
from llama_orch.queen.store.database import located
from llama_orch.queen.store.store import Store
from tests.support import postgres
from tests.support.fake_hive import fake_hive
from tests.support.postgres import PASSWORD, Postgres
from tests.support.queen_process import QueenProcess
from tests.support.serving import serving
from tests.unit.queen.store.store_contract import StoreContract, a_job

# Tests of jobs that are tests here too, on the queen of this file.
from .test_queen_jobs import (
    LOCAL,
    MAKE_TOKEN,
    PASSED,
    TOKEN,
    test_a_failed_task_is_named_with_its_reason,  # noqa: F401
    test_a_job_waits_for_a_slot_and_can_be_cancelled_there,  # noqa: F401
    test_a_node_of_the_inventory_is_provisioned_and_its_story_is_told,  # noqa: F401
    test_a_queen_killed_while_it_cancels_cancels,  # noqa: F401
    test_a_stopped_queen_leaves_nothing_running_and_resumes,  # noqa: F401
    test_cancel_ends_what_runs_and_frees_the_node,  # noqa: F401
)

PAUSE = "- name: Take a while\n  ansible.builtin.pause:\n    seconds: 4\n"

pytestmark = pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing())


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
async def store(server: Postgres) -> AsyncIterator[Store]:
    store = Store(located(server.database(), PASSWORD))
    assert await store.open() == []
    yield store
    await store.close()


class TestPostgres(StoreContract):
    """What a store does, on a server."""


async def test_a_server_that_was_restarted_costs_no_more_than_the_time_that_it_was_away(store: Store, server: Postgres):
    await a_job(store, "j")
    server.stop()
    try:
        with pytest.raises(NotReady, match="the queen's database does not answer") as error:
            await store.jobs.get("j")
        assert error.value.error_code == "database_unavailable" and PASSWORD not in str(error.value)
    finally:
        server.start()
    assert await store.jobs.get("j") is not None


async def test_a_query_waits_for_no_lock_for_ever_and_a_line_that_is_cut_is_noticed(server: Postgres):
    store = Store(located(server.database(), PASSWORD))
    try:
        options = {"statement_timeout", "tcp_keepalives_idle"}
        values = await store.database.do(
            lambda c: {name: c.exec_driver_sql(f"SHOW {name}").scalar() for name in options}
        )
        assert values == {"statement_timeout": "1min", "tcp_keepalives_idle": "10"}
        query = located("postgresql+psycopg://queen@h/db?connect_timeout=3").query
        assert (query["connect_timeout"], query["tcp_user_timeout"]) == ("3", "30000")
    finally:
        await store.close()


async def test_another_queen_that_took_the_database_meanwhile_is_said(store: Store, server: Postgres):
    url = store.database.engine.url
    store.database.engine.dispose()
    other = Store(url)
    try:
        await other.open()
        with pytest.raises(NotReady, match="another queen works with this database"):
            await store.jobs.open()
        assert store.problem is not None and store.problem.code == "database_unavailable"
    finally:
        await other.close()
    assert await store.jobs.open() == [] and store.problem is None


def test_a_workflow_that_is_no_json_is_forgotten_on_a_server_too(server: Postgres):
    url = located(server.database(), PASSWORD)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA dbos")
        for table in ("workflow_status", "operation_outputs"):
            connection.exec_driver_sql(f"CREATE TABLE dbos.{table} (workflow_uuid TEXT, serialization TEXT)")
            connection.exec_driver_sql(
                f"INSERT INTO dbos.{table} VALUES ('w', 'portable_json'), ('o', 'portable_json')"
            )
        connection.exec_driver_sql(
            "UPDATE dbos.operation_outputs SET serialization = 'py_pickle' WHERE workflow_uuid = 'w'"
        )
    assert EngineRecords(url).forget_what_is_no_json() == 1
    with engine.connect() as connection:
        left = connection.exec_driver_sql("SELECT workflow_uuid FROM dbos.workflow_status").scalars().all()
    engine.dispose()
    assert left == ["o"]


async def test_a_second_queen_is_refused(server: Postgres):
    url = located(server.database(), PASSWORD)
    assert schema.refusal(url) == ""
    store = Store(url)
    await store.open()
    assert "another queen works with this database" in schema.refusal(url)
    await store.close()
    assert schema.refusal(url) == ""


def test_a_wrong_password_is_said(server: Postgres):
    said = schema.refusal(located(server.database(), "wrong-and-secret"))
    assert "password authentication failed" in said and "wrong-and-secret" not in said


@pytest.fixture
def queen(tmp_path: Path, server: Postgres) -> Iterator[QueenProcess]:
    password = tmp_path / "database-password"
    password.touch(0o600)
    password.write_text(PASSWORD + "\n")
    queen = QueenProcess(tmp_path, database_url=server.database(), database_password_file=str(password))
    yield queen
    queen.end()


@pytest.fixture
async def hive() -> AsyncIterator[int]:
    async with serving(fake_hive("here", TOKEN)) as url:
        yield int(url.rpartition(":")[2])


async def test_a_killed_queen_resumes_her_job_and_the_password_is_nowhere(
    queen: QueenProcess, hive: int, server: Postgres, tmp_path: Path
):
    queen.hosts(LOCAL % hive)
    queen.playbook(
        "hive", PASSED.format(log=tmp_path / "passed") + MAKE_TOKEN + "- ansible.builtin.pause: {seconds: 3}\n"
    )
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        await api.until(lambda _: (tmp_path / "passed").exists(), "/api/v1/nodes/here")
        queen.stop(signal.SIGKILL)
        queen.start()
        job = await api.until(lambda job: job["ended_at"], f"/api/v1/jobs/{job['job_id']}", timeout=60)
        assert (job["status"], job["error"]) == ("succeeded", None)
        assert (tmp_path / "passed").read_text() == "passed\npassed\n"
    held = server.dump(queen_url(queen))
    assert "dbos.workflow_status" in held and job["job_id"] in held and "alembic_version" in held
    for text in (held, queen.log(), server.log()):
        assert PASSWORD not in text
    assert list(queen.data.glob("*.sqlite")) == []


async def test_a_server_that_goes_and_comes_back_during_a_job(
    queen: QueenProcess, hive: int, server: Postgres, tmp_path: Path
):
    queen.hosts(LOCAL % hive)
    queen.playbook(
        "hive", PASSED.format(log=tmp_path / "passed") + MAKE_TOKEN + "- ansible.builtin.pause: {seconds: 5}\n"
    )
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        await api.until(lambda _: (tmp_path / "passed").exists(), "/api/v1/nodes/here")
        server.stop()
        status, body = await api.call("GET", f"/api/v1/jobs/{job['job_id']}")
        assert (status, body["error"]["code"]) == (503, "database_unavailable")
        status, body = await api.call("GET", "/api/v1/nodes")
        assert (status, [one["code"] for one in body["problems"]]) == (200, ["database_unavailable"])
        status, scraped = await api.call("GET", "/metrics")
        assert status == 200 and "llama_orch_queen_problems 1.0" in scraped
        server.start()
        job = await api.until(lambda job: job["ended_at"], f"/api/v1/jobs/{job['job_id']}", timeout=90)
        assert (job["status"], job["error"]) == ("succeeded", None)
        assert (await api.call("GET", "/api/v1/nodes"))[1]["problems"] == []


def queen_url(queen: QueenProcess) -> str:
    (line,) = [line for line in queen.config.read_text().splitlines() if line.startswith("database_url")]
    return line.split('"')[1]
