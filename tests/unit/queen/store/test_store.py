from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from llama_orch.contract.common import Problem
from llama_orch.contract.queen import JobEvent, JobStatus
from llama_orch.queen.records import NodeRecord
from llama_orch.queen.store import audit, events, jobs, nodes
from llama_orch.queen.store.jobs import OpenJobExists
from llama_orch.queen.store.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'q.sqlite'}")
    await store.open()
    yield store
    await store.close()


async def test_jobs_since_then_and_those_that_are_open(store: Store):
    await a_job(store, "j1")
    now = datetime.now(UTC)
    assert [job.job_id for job in await store.jobs.since("n", now + timedelta(hours=1))] == ["j1"]
    await store.jobs.end("j1", JobStatus.SUCCEEDED, None)
    assert await store.jobs.since("n", now + timedelta(hours=1)) == []
    assert [job.job_id for job in await store.jobs.since("n", now - timedelta(hours=1))] == ["j1"]
    assert await store.jobs.since("other", now - timedelta(hours=1)) == []


async def a_job(store: Store, job_id: str, node: str = "n") -> None:
    await store.jobs.create(job_id, "provision", node, "c", force=False, had_password=False)


async def test_a_node_has_one_open_job_and_the_database_says_so(store: Store, tmp_path: Path):
    await a_job(store, "j1")
    with pytest.raises(OpenJobExists) as raised:
        await a_job(store, "j2")
    assert raised.value.job.job_id == "j1"
    with pytest.raises(sqlite3.IntegrityError), sqlite3.connect(tmp_path / "q.sqlite") as connection:
        connection.execute(
            "INSERT INTO jobs (job_id, kind, node_name, status, percentage, created_at, correlation_id, force,"
            " had_password) SELECT 'j3', kind, node_name, 'running', 0, created_at, 'c', 0, 0 FROM jobs"
        )
    await a_job(store, "j4", node="other")
    await store.jobs.end("j1", JobStatus.FAILED, Problem(code="c", message="m"))
    await a_job(store, "j5")
    assert [job.job_id for job in (await store.jobs.page("n"))[0]] == ["j5", "j1"]
    assert [job.job_id for job in await store.jobs.open()] == ["j4", "j5"]


async def test_jobs_in_pages(store: Store):
    for number in range(5):
        await a_job(store, f"j{number}", node=f"n{number % 2}")
        await store.jobs.end(f"j{number}", JobStatus.SUCCEEDED, None)
    seen: list[list[str]] = []
    jobs, following = await store.jobs.page(limit=2)
    seen.append([job.job_id for job in jobs])
    await a_job(store, "new")
    while following is not None:
        jobs, following = await store.jobs.page(limit=2, before=following)
        seen.append([job.job_id for job in jobs])
    assert seen == [["j4", "j3"], ["j2", "j1"], ["j0"]]
    jobs, following = await store.jobs.page("n0", limit=2)
    assert [job.job_id for job in jobs] == ["j4", "j2"] and following is not None
    jobs, following = await store.jobs.page("n0", limit=2, before=following)
    assert ([job.job_id for job in jobs], following) == (["j0"], None)


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


async def test_an_ended_job_stays_as_it_ended(store: Store):
    await a_job(store, "j")
    await store.jobs.start("j")
    await store.jobs.end("j", JobStatus.SUCCEEDED, None)
    await store.jobs.end("j", JobStatus.FAILED, Problem(code="c", message="m"))
    assert not await store.jobs.cancel("j")
    job = await store.jobs.get("j")
    assert job is not None and (job.status, job.percentage) == (JobStatus.SUCCEEDED, 100)
    assert job.created_at <= (job.started_at or datetime.max) <= (job.ended_at or datetime.max)


async def test_a_job_that_is_being_cancelled_does_not_run_again(store: Store):
    await a_job(store, "j")
    assert await store.jobs.cancel("j")
    await store.jobs.start("j")
    job = await store.jobs.get("j")
    assert job is not None and job.status is JobStatus.CANCELLING and job.is_open


async def test_events_are_read_from_any_place(store: Store):
    await a_job(store, "j")
    events = [
        JobEvent(seq=seq, at=datetime.now(UTC), kind="phase", percentage=float(seq), message="é" * seq)
        for seq in range(1, 8)
    ]
    await store.events.add("j", events[:4])
    await store.events.add("j", events[4:])
    assert await store.events.after("j", 0) == events
    assert await store.events.after("j", 5) == events[5:]
    assert await store.events.last("j") == events[-1]
    job = await store.jobs.get("j")
    assert job is not None and job.percentage == 7


async def test_counts_hold_every_status(store: Store):
    await a_job(store, "j")
    counts = await store.jobs.counts()
    assert set(counts) == set(JobStatus) and counts[JobStatus.QUEUED] == 1 and sum(counts.values()) == 1


async def test_old_jobs_go_with_their_events_and_open_ones_stay(store: Store):
    await a_job(store, "open", node="busy")
    for number in range(5):
        await a_job(store, f"j{number}")
        event = JobEvent(seq=1, at=datetime.now(UTC), kind="end", percentage=0.0)
        await store.events.add(f"j{number}", [event])
        await store.jobs.end(f"j{number}", JobStatus.FAILED, None)
    assert await store.trim(kept_jobs=2) == ["j0", "j1", "j2"]
    assert [job.job_id for job in (await store.jobs.page())[0]] == ["j4", "j3", "open"]
    assert await store.events.after("j0", 0) == []


async def test_learnt_task_counts(store: Store):
    assert await store.learnt.tasks_of("hive") is None
    await store.learnt.learn("hive", 40)
    await store.learnt.learn("hive", 41)
    assert await store.learnt.tasks_of("hive") == 41


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
