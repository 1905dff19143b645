"""Jobs: what each is to do, how far it is, how it ended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from llama_orch.contract.common import Problem
from llama_orch.contract.errors import Conflict
from llama_orch.contract.queen import JobKind, JobStatus

from ..records import OPEN, JobCursor, JobRecord, RemedyOrder
from .database import Database
from .tables import JOB_EVENTS, JOBS, now

_RECORD = TypeAdapter(JobRecord)
_ORDER = ("remedy", "gpu", "condition")
_PLAIN = [name for name in JobRecord.__dataclass_fields__ if name != "order"]


class OpenJobExists(Conflict):
    """The node has an open job already; `job` is that one."""

    def __init__(self, job: JobRecord) -> None:
        super().__init__(
            f"job {job.job_id} ({job.kind}) works on node {job.node_name}; wait for its end or cancel it",
            code="job_open",
            job_id=job.job_id,
            kind=job.kind,
            status=job.status,
        )
        self.job = job


class JobTable:
    """Records of jobs, numbered as they come."""

    def __init__(self, database: Database) -> None:
        self._do = database.do

    async def create(
        self,
        job_id: str,
        kind: JobKind,
        node_name: str,
        correlation_id: str,
        *,
        force: bool = False,
        had_password: bool = False,
        order: RemedyOrder | None = None,
    ) -> JobRecord:
        """Record a new job. Raises OpenJobExists where the node has one that has not ended."""
        values = {
            "job_id": job_id,
            "kind": kind,
            "node_name": node_name,
            "status": JobStatus.QUEUED,
            "percentage": 0.0,
            "created_at": now(),
            "correlation_id": correlation_id,
            "force": int(force),
            "had_password": int(had_password),
            **({name: getattr(order, name) for name in _ORDER} if order else {}),
        }
        try:
            await self._do(lambda c: c.execute(insert(JOBS).values(**values)))
        except IntegrityError:
            existing = await self.open_of(node_name)
            if existing is None:
                raise
            raise OpenJobExists(existing) from None
        job = await self.get(job_id)
        assert job is not None  # noqa: S101  it was written one line above
        return job

    async def get(self, job_id: str) -> JobRecord | None:
        """One job, or None."""
        return _one(await self._read(select(JOBS).where(JOBS.c.job_id == job_id)))

    async def page(
        self, node_name: str | None = None, limit: int = 200, before: JobCursor | None = None
    ) -> tuple[list[JobRecord], JobCursor | None]:
        """Up to `limit` jobs, newest first, older than `before`; and where older ones follow, what to give then."""
        query = select(JOBS).order_by(JOBS.c.number.desc()).limit(limit + 1)
        if node_name is not None:
            query = query.where(JOBS.c.node_name == node_name)
        if before is not None:
            query = query.where(JOBS.c.number < before)
        found = await self._read(query)
        return found[:limit], found[limit - 1].number if len(found) > limit else None

    async def since(self, node_name: str, begin: datetime) -> list[JobRecord]:
        """The node's jobs that were made since then, and those that have not ended."""
        recent = (JOBS.c.created_at >= begin.astimezone(UTC).isoformat()) | JOBS.c.status.in_(OPEN)
        return await self._read(select(JOBS).where(JOBS.c.node_name == node_name, recent).order_by(JOBS.c.number))

    async def open(self) -> list[JobRecord]:
        """Jobs that have not ended, oldest first."""
        return await self._read(select(JOBS).where(JOBS.c.status.in_(OPEN)).order_by(JOBS.c.number))

    async def open_of(self, node_name: str) -> JobRecord | None:
        """The node's open job, or None."""
        return _one(await self._read(select(JOBS).where(JOBS.c.status.in_(OPEN), JOBS.c.node_name == node_name)))

    async def start(self, job_id: str) -> None:
        """A queued job runs; one that is being cancelled stays so."""
        change = update(JOBS).where(JOBS.c.job_id == job_id, JOBS.c.status == JobStatus.QUEUED)
        await self._do(lambda c: c.execute(change.values(status=JobStatus.RUNNING, started_at=now())))

    async def cancel(self, job_id: str) -> bool:
        """Mark an open job as being cancelled; False where it has ended."""
        change = update(JOBS).where(JOBS.c.job_id == job_id, JOBS.c.status.in_(OPEN))
        return await self._do(lambda c: c.execute(change.values(status=JobStatus.CANCELLING)).rowcount) > 0

    async def end(self, job_id: str, status: JobStatus, error: Problem | None) -> None:
        """Close an open job; one that has ended stays as it is."""
        values: dict[str, Any] = {"status": status, "ended_at": now(), "error": error and error.model_dump()}
        if status is JobStatus.SUCCEEDED:
            values["percentage"] = 100.0
        change = update(JOBS).where(JOBS.c.job_id == job_id, JOBS.c.status.in_(OPEN)).values(**values)
        await self._do(lambda c: c.execute(change))

    async def counts(self) -> dict[JobStatus, int]:
        """How many jobs there are of each status, zeros included."""
        query = select(JOBS.c.status, func.count()).group_by(JOBS.c.status)
        rows = await self._do(lambda c: c.execute(query).all())
        return dict.fromkeys(JobStatus, 0) | {JobStatus(status): count for status, count in rows}

    async def _read(self, query: Any) -> list[JobRecord]:
        return await self._do(lambda c: [read(row) for row in c.execute(query).mappings().all()])


def read(row: Any) -> JobRecord:
    """A row as a record. Raises ValueError where it is damaged."""
    order = {name: row[name] for name in _ORDER} if row["remedy"] is not None else None
    return _RECORD.validate_python({**{name: row[name] for name in _PLAIN}, "order": order})


def trim(connection: Connection, kept: int) -> list[str]:
    """Delete ended jobs beyond the newest `kept`, with their events; answers their ids."""
    newest = select(JOBS.c.number).order_by(JOBS.c.number.desc()).limit(kept)
    query = select(JOBS.c.job_id).where(JOBS.c.status.not_in(OPEN), JOBS.c.number.not_in(newest.scalar_subquery()))
    old = [row[0] for row in connection.execute(query).all()]
    for job_id in old:
        forget(connection, job_id)
    return old


def forget(connection: Connection, job_id: str) -> None:
    """Delete a job and its events."""
    connection.execute(delete(JOB_EVENTS).where(JOB_EVENTS.c.job_id == job_id))
    connection.execute(delete(JOBS).where(JOBS.c.job_id == job_id))


def _one(found: list[JobRecord]) -> JobRecord | None:
    return found[0] if found else None
