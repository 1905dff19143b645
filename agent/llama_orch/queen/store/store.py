"""What the queen keeps: the last known state of nodes, jobs, their events, the audit trail."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Table, create_engine, delete, event, func, insert, make_url, select, update
from sqlalchemy.exc import IntegrityError

from llama_orch.contract.common import Problem
from llama_orch.contract.devices import ConditionType, Remedy
from llama_orch.contract.queen import Job, JobEvent, JobKind, JobStatus, NodeHive, NodeStatus

from ..fleet.states import NodeRecord
from . import damage
from .tables import AUDIT, JOB_EVENTS, JOBS, LEARNT, METADATA, NODES

log = logging.getLogger(__name__)

OPEN = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING)
SCHEMA_VERSION = 2
# What an older database lacks, by the version that brought it.
_ADDED = {2: ("jobs", ("remedy", "gpu", "condition"))}
KEPT_JOBS = 1000
KEPT_AUDIT = 10_000
KEPT_UNNOTED = 1000
T = TypeVar("T")
# Jobs are numbered as they come; a page goes on below the number of its last one.
JobCursor = int


class OpenJobExists(Exception):
    """The node has an open job already; `job` is that one."""

    def __init__(self, job: StoredJob) -> None:
        super().__init__(job.wire.job_id)
        self.job = job


@dataclass(frozen=True)
class Cure:
    """What a job of the kind remedy is to do, and for which condition the queen began it by itself."""

    remedy: Remedy
    gpu: str | None = None
    condition: ConditionType | None = None


class WrongSchema(Exception):
    """The database was written by a newer version."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"the queen's database has schema {found}, this version knows up to {SCHEMA_VERSION}: install the newer "
            "version again, or restore the database of before"
        )


@dataclass(frozen=True)
class StoredJob:
    """A job with what the wire does not show."""

    wire: Job
    force: bool = False
    had_password: bool = False
    number: JobCursor = 0

    @property
    def is_open(self) -> bool:
        """Whether it still has work to do."""
        return self.wire.status in OPEN


class Store:
    """Every read and write runs on one thread of its own: the event loop never waits for a disk."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, json_serializer=functools.partial(json.dumps, separators=(",", ":")))
        self._thread = ThreadPoolExecutor(1, "store")
        # Of the audit trail, what the disk did not take yet.
        self._unnoted: list[dict[str, Any]] = []
        self._noting = asyncio.Lock()

        @event.listens_for(self._engine, "connect")
        def _prepare(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    async def open(self) -> list[Problem]:
        """Make the tables where they are missing, and put right what is damaged. Raises WrongSchema.

        Answers what was damaged: a whole database is set aside, a row that cannot be read is taken out or closed.
        """
        path = self._engine.url.database
        holds = "what was known of nodes and jobs is lost; nodes show again when their hives answer"
        damaged = await asyncio.to_thread(damage.set_aside_if_damaged, Path(path), holds) if path else None
        await self._do(self._create)
        mended = await self._do(_mend)
        return [problem for problem in (damaged, *mended) if problem is not None]

    async def close(self) -> None:
        """Finish what is being written, and write what could not be."""
        with contextlib.suppress(Exception):
            await self._write_notes()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=False)

    async def node_records(self) -> dict[str, NodeRecord]:
        """Every node's record by name."""
        # What is read is checked by the store's thread too: hundreds of rows at once would hold up the loop.
        return await self._do(
            lambda c: {row["node_name"]: _node(row) for row in c.execute(select(NODES)).mappings().all()}
        )

    async def save_nodes(self, records: Sequence[NodeRecord]) -> None:
        """Write these records, all or none."""
        if records:
            await self._do(lambda c: _replace_nodes(c, records))

    async def forget_node(self, name: str) -> None:
        """Remove a node's record."""
        await self._do(lambda c: c.execute(delete(NODES).where(NODES.c.node_name == name)))

    async def create_job(
        self,
        job_id: str,
        kind: JobKind,
        node_name: str,
        correlation_id: str,
        *,
        force: bool = False,
        had_password: bool = False,
        cure: Cure | None = None,
    ) -> StoredJob:
        """Record a new job. Raises OpenJobExists where the node has one that has not ended."""
        values = {
            "job_id": job_id,
            "kind": kind,
            "node_name": node_name,
            "status": JobStatus.QUEUED,
            "percentage": 0.0,
            "created_at": _now(),
            "correlation_id": correlation_id,
            "force": int(force),
            "had_password": int(had_password),
            **({"remedy": cure.remedy, "gpu": cure.gpu, "condition": cure.condition} if cure else {}),
        }
        try:
            await self._do(lambda c: c.execute(insert(JOBS).values(**values)))
        except IntegrityError:
            existing = await self.open_job_of(node_name)
            if existing is None:
                raise
            raise OpenJobExists(existing) from None
        job = await self.job(job_id)
        assert job is not None  # noqa: S101  it was written one line above
        return job

    async def job(self, job_id: str) -> StoredJob | None:
        """One job, or None."""
        found = await self._jobs(select(JOBS).where(JOBS.c.job_id == job_id))
        return found[0] if found else None

    async def jobs(
        self, node_name: str | None = None, limit: int = 200, before: JobCursor | None = None
    ) -> tuple[list[StoredJob], JobCursor | None]:
        """Up to `limit` jobs, newest first, older than `before`; and where older ones follow, what to give then."""
        query = select(JOBS).order_by(JOBS.c.number.desc()).limit(limit + 1)
        if node_name is not None:
            query = query.where(JOBS.c.node_name == node_name)
        if before is not None:
            query = query.where(JOBS.c.number < before)
        found = await self._jobs(query)
        return found[:limit], found[limit - 1].number if len(found) > limit else None

    async def jobs_since(self, node_name: str, begin: datetime) -> list[StoredJob]:
        """The node's jobs that were made since then, and those that have not ended."""
        recent = (JOBS.c.created_at >= begin.astimezone(UTC).isoformat()) | JOBS.c.status.in_(OPEN)
        return await self._jobs(select(JOBS).where(JOBS.c.node_name == node_name, recent).order_by(JOBS.c.number))

    async def open_jobs(self) -> list[StoredJob]:
        """Jobs that have not ended, oldest first."""
        return await self._jobs(select(JOBS).where(JOBS.c.status.in_(OPEN)).order_by(JOBS.c.number))

    async def open_job_of(self, node_name: str) -> StoredJob | None:
        """The node's open job, or None."""
        found = await self._jobs(select(JOBS).where(JOBS.c.status.in_(OPEN), JOBS.c.node_name == node_name))
        return found[0] if found else None

    async def start_job(self, job_id: str) -> None:
        """A queued job runs; one that is being cancelled stays so."""
        change = update(JOBS).where(JOBS.c.job_id == job_id, JOBS.c.status == JobStatus.QUEUED)
        await self._do(lambda c: c.execute(change.values(status=JobStatus.RUNNING, started_at=_now())))

    async def cancel_job(self, job_id: str) -> bool:
        """Mark an open job as being cancelled; False where it has ended."""
        change = update(JOBS).where(JOBS.c.job_id == job_id, JOBS.c.status.in_(OPEN))
        result = await self._do(lambda c: c.execute(change.values(status=JobStatus.CANCELLING)).rowcount)
        return result > 0

    async def end_job(self, job_id: str, status: JobStatus, error: Problem | None) -> None:
        """Close an open job; one that has ended stays as it is."""
        values: dict[str, Any] = {"status": status, "ended_at": _now(), "error": error and error.model_dump()}
        if status is JobStatus.SUCCEEDED:
            values["percentage"] = 100.0
        change = update(JOBS).where(JOBS.c.job_id == job_id, JOBS.c.status.in_(OPEN)).values(**values)
        await self._do(lambda c: c.execute(change))

    async def job_counts(self) -> dict[JobStatus, int]:
        """How many jobs there are of each status, zeros included."""
        query = select(JOBS.c.status, func.count()).group_by(JOBS.c.status)
        rows = await self._do(lambda c: c.execute(query).all())
        return dict.fromkeys(JobStatus, 0) | {JobStatus(status): count for status, count in rows}

    async def add_events(self, job_id: str, events: Sequence[JobEvent]) -> None:
        """Write events and the percentage that they reached, in one transaction; what is there already stays."""
        change = update(JOBS).where(JOBS.c.job_id == job_id).values(percentage=events[-1].percentage)

        def write(connection: Connection) -> None:
            rows = [{"job_id": job_id, "seq": e.seq, "event": e.model_dump(mode="json")} for e in events]
            # Who was told that a write failed, or was not told at all, writes again what may be there.
            connection.execute(insert(JOB_EVENTS).prefix_with("OR IGNORE"), rows)
            connection.execute(change)

        await self._do(write)

    async def events(self, job_id: str, after: int, limit: int = 500) -> list[JobEvent]:
        """A job's events whose number is above `after`, in order."""
        query = select(JOB_EVENTS.c.event).where(JOB_EVENTS.c.job_id == job_id, JOB_EVENTS.c.seq > after)
        query = query.order_by(JOB_EVENTS.c.seq).limit(limit)
        return await self._do(lambda c: [JobEvent.model_validate(row[0]) for row in c.execute(query).all()])

    async def last_event(self, job_id: str) -> JobEvent | None:
        """A job's newest event, or None."""
        query = select(JOB_EVENTS.c.event).where(JOB_EVENTS.c.job_id == job_id)
        row = await self._do(lambda c: c.execute(query.order_by(JOB_EVENTS.c.seq.desc()).limit(1)).first())
        return None if row is None else JobEvent.model_validate(row[0])

    async def audit(self, action: str, subject: str, correlation_id: str, **details: Any) -> None:
        """Note who asked for what; never a secret.

        What was asked for is done by then. So nobody is told where it cannot be noted: it stands in the log, and is
        written with the next note that can be.
        """
        values = {"at": _now(), "action": action, "subject": subject, "correlation_id": correlation_id}
        self._unnoted = [*self._unnoted, {**values, "details": details}][-KEPT_UNNOTED:]
        try:
            await self._write_notes()
        except Exception as error:
            log.error("cannot be noted in the audit trail: %s, %s: %r", values, details, error)  # noqa: TRY400

    async def _write_notes(self) -> None:
        async with self._noting:
            notes, self._unnoted = self._unnoted, []
            try:
                if notes:
                    await self._do(lambda c: c.execute(insert(AUDIT), notes))
            except BaseException:
                self._unnoted = [*notes, *self._unnoted][-KEPT_UNNOTED:]
                raise

    async def learnt_tasks(self, playbook: str) -> int | None:
        """How many tasks the playbook's last successful run had."""
        query = select(LEARNT.c.tasks).where(LEARNT.c.playbook == playbook)
        return await self._do(lambda c: c.execute(query).scalar())

    async def learn_tasks(self, playbook: str, tasks: int) -> None:
        """Remember how many tasks a successful run had."""

        def write(connection: Connection) -> None:
            connection.execute(delete(LEARNT).where(LEARNT.c.playbook == playbook))
            connection.execute(insert(LEARNT).values(playbook=playbook, tasks=tasks))

        await self._do(write)

    async def trim(self, kept_jobs: int = KEPT_JOBS) -> list[str]:
        """Delete ended jobs beyond the newest `kept_jobs`, with their events; answers their ids."""
        return await self._do(lambda c: _trim(c, kept_jobs))

    async def _jobs(self, query: Any) -> list[StoredJob]:
        return await self._do(lambda c: [_job(row) for row in c.execute(query).mappings().all()])

    async def _do(self, work: Callable[[Connection], T]) -> T:
        def in_transaction() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, in_transaction)

    def _create(self, connection: Connection) -> None:
        found = connection.exec_driver_sql("PRAGMA user_version").scalar() or 0
        if found > SCHEMA_VERSION:
            raise WrongSchema(found)
        METADATA.create_all(connection)
        for version, (table, columns) in _ADDED.items():
            # SQLite's driver commits each of these by itself: after a crash in between some are there.
            there = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table})")}
            for column in columns if 0 < found < version else ():
                if column not in there:
                    connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {column} VARCHAR")
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def newer_schema(url: str) -> str:
    """What to say where the database was written by a newer version; nothing where it was not."""
    path = make_url(url).database
    if not path or not Path(path).exists():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error:
        return ""
    return str(WrongSchema(found)) if found > SCHEMA_VERSION else ""


def _mend(connection: Connection) -> list[Problem]:
    """Take out what cannot be read: a node begins anew, a job has failed."""
    found: list[str] = []
    for name in _unreadable(connection, NODES, NODES.c.node_name, _node):
        connection.execute(delete(NODES).where(NODES.c.node_name == name))
        found.append(f"what was known of node {name}")
    for job_id in _unreadable(connection, JOBS, JOBS.c.job_id, _job):
        # Also what its other columns hold may be the damage.
        connection.execute(delete(JOB_EVENTS).where(JOB_EVENTS.c.job_id == job_id))
        connection.execute(delete(JOBS).where(JOBS.c.job_id == job_id))
        found.append(f"job {job_id}")
    for one in found:
        log.error("%s could not be read from the database, and is forgotten", one)
    if not found:
        return []
    return [
        Problem(
            code="record_damaged",
            message=f"could not be read from the queen's database, and was forgotten: {', '.join(found)}"[:1000],
            what_to_do="look at the disk of data_dir; provision a node again whose state is not what it should be",
        )
    ]


def _unreadable(connection: Connection, table: Table, key: Column[str], read: Callable[[Any], object]) -> list[str]:
    def fails(query: Any) -> bool:
        try:
            for row in connection.execute(query).mappings():
                read(row)
        # JSON that is none is a ValueError, and so is what pydantic and an enumeration refuse.
        except (ValueError, TypeError, LookupError):
            return True
        return False

    if not fails(select(table)):
        return []
    keys = [row[0] for row in connection.execute(select(key)).all()]
    return [one for one in keys if fails(select(table).where(key == one))]


def _replace_nodes(connection: Connection, records: Iterable[NodeRecord]) -> None:
    for record in records:
        values = {
            "status": record.status,
            "job_id": record.job_id,
            "last_seen": record.last_seen and record.last_seen.isoformat(),
            "last_error": record.last_error and record.last_error.model_dump(),
            "hive": record.hive and record.hive.model_dump(mode="json"),
            "changed_at": record.changed_at and record.changed_at.isoformat(),
        }
        changed = connection.execute(update(NODES).where(NODES.c.node_name == record.node_name).values(**values))
        if changed.rowcount == 0:
            connection.execute(insert(NODES).values(node_name=record.node_name, **values))


def _trim(connection: Connection, kept_jobs: int) -> list[str]:
    newest = select(JOBS.c.number).order_by(JOBS.c.number.desc()).limit(kept_jobs)
    query = select(JOBS.c.job_id).where(JOBS.c.status.not_in(OPEN), JOBS.c.number.not_in(newest.scalar_subquery()))
    old = [row[0] for row in connection.execute(query).all()]
    for job_id in old:
        connection.execute(delete(JOB_EVENTS).where(JOB_EVENTS.c.job_id == job_id))
        connection.execute(delete(JOBS).where(JOBS.c.job_id == job_id))
    last = connection.execute(select(func.max(AUDIT.c.number))).scalar() or 0
    connection.execute(delete(AUDIT).where(AUDIT.c.number <= last - KEPT_AUDIT))
    return old


def _node(row: Any) -> NodeRecord:
    return NodeRecord(
        node_name=row["node_name"],
        status=NodeStatus(row["status"]),
        job_id=row["job_id"],
        last_seen=row["last_seen"] and datetime.fromisoformat(row["last_seen"]),
        last_error=row["last_error"] and Problem.model_validate(row["last_error"]),
        hive=row["hive"] and NodeHive.model_validate(row["hive"]),
        changed_at=row["changed_at"] and datetime.fromisoformat(row["changed_at"]),
    )


def _job(row: Any) -> StoredJob:
    return StoredJob(
        wire=Job.model_validate({key: row[key] for key in Job.model_fields}),
        force=bool(row["force"]),
        had_password=bool(row["had_password"]),
        number=row["number"],
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
