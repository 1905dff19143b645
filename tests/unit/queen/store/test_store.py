from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llama_orch.contract.queen import JobEvent
from llama_orch.queen.records import NodeRecord
from llama_orch.queen.store import audit, events, jobs, nodes
from llama_orch.queen.store.store import Store
from tests.unit.queen.store.store_contract import StoreContract, a_job


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'q.sqlite'}")
    await store.open()
    yield store
    await store.close()


class TestSqlite(StoreContract):
    """What a store does, on a file."""


async def test_one_open_job_for_a_node_is_the_databases_rule(store: Store, tmp_path: Path):
    await a_job(store, "j1")
    with pytest.raises(sqlite3.IntegrityError), sqlite3.connect(tmp_path / "q.sqlite") as connection:
        connection.execute(
            "INSERT INTO jobs (job_id, kind, node_name, status, percentage, created_at, correlation_id, force,"
            " had_password) SELECT 'j3', kind, node_name, 'running', 0, created_at, 'c', 0, 0 FROM jobs"
        )


async def test_what_cannot_be_noted_in_the_audit_trail_is_noted_later_and_stops_nobody(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit, "KEPT_UNNOTED", 3)
    path = tmp_path / "q.sqlite"

    def noted() -> list[str]:
        with sqlite3.connect(path) as connection:
            return [row[0] for row in connection.execute("SELECT subject FROM audit ORDER BY number")]

    await store.audit.note("register", "n0", "c")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END")
    for number in range(1, 6):
        await store.audit.note("register", f"n{number}", "c", force=True)
    assert noted() == ["n0"] and "n1" in caplog.text and "cannot be noted" in caplog.text
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER full")
    await store.audit.note("remove", "n6", "c")
    assert noted() == ["n0", "n4", "n5", "n6"], "the last three that it did not take are kept"


async def test_what_could_not_be_noted_is_at_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "q.sqlite"
    store = Store(f"sqlite:///{path}")
    await store.open()
    with monkeypatch.context() as patch:
        patch.setattr(store.audit, "_do", refuse)
        await store.audit.note("register", "n", "c")
    await store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT subject FROM audit").fetchall() == [("n",)]


async def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


async def test_rows_are_read_and_checked_beside_the_loop(store: Store, monkeypatch: pytest.MonkeyPatch):
    await a_job(store, "j")
    await store.events.add("j", [JobEvent(seq=1, at=datetime.now(UTC), kind="phase", percentage=1)])
    await store.nodes.save([NodeRecord("n")])
    threads: set[int] = set()
    for module, name in ((jobs, "read"), (nodes, "read"), (events.JobEvent, "model_validate")):
        note_threads(monkeypatch, module, name, threads)
    assert (await store.jobs.page())[0] and await store.events.after("j", 0) and await store.nodes.all()
    assert len(threads) == 1 and threading.get_ident() not in threads


def note_threads(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, threads: set[int]) -> None:
    """Have each call of `name` note by which thread it is done."""
    really = getattr(owner, name)

    def note(*arguments: Any, **fields: Any) -> Any:
        threads.add(threading.get_ident())
        return really(*arguments, **fields)

    monkeypatch.setattr(owner, name, note)


@pytest.mark.parametrize("damage", [b"\0" * 8192, b"no database at all, but longer than its header " * 100])
async def test_a_damaged_database_is_set_aside(tmp_path: Path, damage: bytes):
    path = tmp_path / "q.sqlite"
    store = Store(f"sqlite:///{path}")
    assert await store.open() == []
    await a_job(store, "j1")
    await store.close()
    path.write_bytes(damage)
    store = Store(f"sqlite:///{path}")
    (problem,) = await store.open()
    assert problem.code == "database_damaged"
    (kept,) = list(tmp_path.glob("q.sqlite.damaged-*Z"))  # noqa: ASYNC240  nothing else runs here
    assert kept.name in problem.message
    assert kept.read_bytes() == damage
    await a_job(store, "j2")
    assert [job.job_id for job in (await store.jobs.page())[0]] == ["j2"]
    await store.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE jobs SET status = 'unheard-of' WHERE job_id = 'j1'",
        "UPDATE jobs SET error = '{' WHERE job_id = 'j1'",
        "UPDATE jobs SET created_at = 'yesterday' WHERE job_id = 'j1'",
        "UPDATE nodes_state SET status = 'unheard-of' WHERE node_name = 'n1'",
        "UPDATE nodes_state SET hive = 'no json' WHERE node_name = 'n1'",
        "UPDATE nodes_state SET last_seen = 'yesterday' WHERE node_name = 'n1'",
    ],
)
async def test_a_row_that_cannot_be_read_keeps_no_queen_from_starting(tmp_path: Path, damage: str):
    path = tmp_path / "q.sqlite"
    store = Store(f"sqlite:///{path}")
    await store.open()
    for number in ("1", "2"):
        await a_job(store, f"j{number}", node=f"n{number}")
        await store.nodes.save([NodeRecord(f"n{number}")])
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    store = Store(f"sqlite:///{path}")
    (problem,) = await store.open()
    assert problem.code == "record_damaged"
    jobs, nodes = await store.jobs.open(), await store.nodes.all()
    if "UPDATE jobs" in damage:
        assert ([job.job_id for job in jobs], set(nodes)) == (["j2"], {"n1", "n2"})
        assert "job j1" in problem.message
    else:
        assert (len(jobs), set(nodes)) == (2, {"n2"})
        assert "node n1" in problem.message
    await store.close()
    again = Store(f"sqlite:///{path}")
    assert await again.open() == []
    await again.close()
