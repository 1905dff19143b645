"""Databases of earlier versions get the present form, wholly or not at all; those of later ones are refused."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, make_url

from llama_orch.contract.devices import ConditionType, Remedy
from llama_orch.contract.queen import JobStatus, NodeStatus
from llama_orch.queen.records import RemedyOrder
from llama_orch.queen.store import schema
from llama_orch.queen.store.store import Store
from llama_orch.queen.store.tables import METADATA

OLD = Path(__file__).parent / "fixtures" / "queen-0.1.0.sql"
AT = datetime(2026, 11, 20, 10, 0, 0, 5, UTC)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database as version 0.1.0 left it: jobs that ended and jobs that run, events, nodes, notes."""
    path = tmp_path / "queen.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD.read_text(encoding="utf-8"))
    return path


async def test_all_that_the_first_version_wrote_is_there(old: Path):
    store = Store(f"sqlite:///{old}")
    assert await store.open() == []
    jobs = {job.job_id: job for job in (await store.jobs.page())[0]}
    assert list(jobs) == ["job-4", "job-3", "job-2", "job-1"]
    failed, remedy = jobs["job-1"], jobs["job-2"]
    assert failed.error is not None and (failed.error.code, failed.error.host) == ("disk_full", "hive1")
    assert (failed.status, failed.percentage, failed.had_password) == (JobStatus.FAILED, 41.5, True)
    gpu = "GPU-4cf8db2d-06c5-7d70-1a40-e59b25b2c14c"
    assert remedy.order == RemedyOrder(Remedy.RESET_GPU, gpu, ConditionType.XID)
    assert [(job.job_id, job.status, job.force) for job in await store.jobs.open()] == [
        ("job-3", JobStatus.RUNNING, False),
        ("job-4", JobStatus.CANCELLING, True),
    ]
    assert [event.task or event.message for event in await store.events.after("job-1", 0)] == [
        "provision begins",
        "Installé",
    ]
    nodes = await store.nodes.all()
    assert {name: node.status for name, node in nodes.items()} == {
        "hive1": NodeStatus.ACTIVE,
        "hive2": NodeStatus.PROVISIONING,
        "hive3": NodeStatus.REMOVING,
    }
    assert nodes["hive1"].hive and nodes["hive1"].hive.workers.busy == 1 and nodes["hive1"].last_seen == AT
    assert await store.learnt.tasks_of("hive") == 61
    await store.audit.note("remove", "hive1", "c", principal="admin", address="192.0.2.7")
    await store.close()
    with sqlite3.connect(old) as connection:
        notes = connection.execute("SELECT action, principal, address FROM audit ORDER BY number").fetchall()
    assert notes == [("register", None, None), ("remedy", None, None), ("remove", "admin", "192.0.2.7")]


@pytest.mark.parametrize("lacks", [("remedy", "gpu", "condition"), ("gpu", "condition")], ids=["all", "cut short"])
async def test_a_database_without_remedies_gets_them(old: Path, lacks: tuple[str, ...]):
    with sqlite3.connect(old) as connection:
        for column in lacks:
            connection.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        connection.execute("UPDATE jobs SET remedy = NULL" if "remedy" not in lacks else "PRAGMA user_version = 1")
    store = Store(f"sqlite:///{old}")
    await store.open()
    await store.jobs.create("new", "remedy", "n", "c", order=RemedyOrder(Remedy.REBOOT))
    new = await store.jobs.get("new")
    assert new is not None and new.order == RemedyOrder(Remedy.REBOOT)
    await store.close()


@pytest.mark.parametrize("begin", ["nothing", "0.1.0"])
def test_the_migrations_make_the_tables_that_the_code_knows(tmp_path: Path, begin: str):
    path = tmp_path / "queen.sqlite"
    if begin == "0.1.0":
        with sqlite3.connect(path) as connection:
            connection.executescript(OLD.read_text(encoding="utf-8"))
    engine = schema.engine_for(make_url(f"sqlite:///{path}"))
    for _ in range(2):
        with engine.begin() as connection:
            schema.upgrade(connection)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert "one_open_job_per_node" in str(connection.exec_driver_sql("SELECT name FROM sqlite_master").fetchall())


def test_a_migration_that_is_cut_short_leaves_what_was_there(old: Path, monkeypatch: pytest.MonkeyPatch):
    def dump() -> list[str]:
        with sqlite3.connect(old) as connection:
            return list(connection.iterdump())

    before, upgrade = dump(), schema.command.upgrade

    def dies(*arguments: Any) -> None:
        upgrade(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(schema.command, "upgrade", dies)
    engine = schema.engine_for(make_url(f"sqlite:///{old}"))
    with pytest.raises(KeyboardInterrupt), engine.begin() as connection:
        schema.upgrade(connection)
    engine.dispose()
    assert dump() == before


async def test_a_newer_database_is_refused(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'q.sqlite'}"
    with sqlite3.connect(tmp_path / "q.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    store = Store(url)
    with pytest.raises(schema.WrongSchema, match="99"):
        await store.open()
    await store.close()
    assert "schema 99" in schema.refusal(url)
    assert schema.refusal(f"sqlite:///{tmp_path / 'none.sqlite'}") == ""
    (tmp_path / "damaged.sqlite").write_bytes(b"x" * 5000)
    assert schema.refusal(f"sqlite:///{tmp_path / 'damaged.sqlite'}") == ""


async def test_a_revision_that_nobody_here_knows_is_refused(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'q.sqlite'}"
    store = Store(url)
    await store.open()
    await store.close()
    with sqlite3.connect(tmp_path / "q.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "schema 9999" in schema.refusal(url) and "newer version" in schema.refusal(url)


def test_a_server_that_is_not_there_is_said(tmp_path: Path):
    said = schema.refusal(f"postgresql+psycopg://queen:a-secret@/llama?host={tmp_path}")
    assert said.startswith("'database_url' names a server at") and "a-secret" not in said


def test_an_older_queen_refuses_what_a_newer_one_wrote(old: Path):
    engine = create_engine(f"sqlite:///{old}")
    with engine.begin() as connection:
        schema.upgrade(connection)
        # Version 0.1.0 stops at what is more than 2.
        assert _user_version(connection) > 2


def _user_version(connection: Connection) -> int:
    return connection.exec_driver_sql("PRAGMA user_version").scalar_one()
