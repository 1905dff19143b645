"""What jobs tell, line by line."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select, update

from llama_orch.contract.queen import JobEvent

from .database import Database, insert_new
from .tables import JOB_EVENTS, JOBS


class EventTable:
    """Events of jobs, numbered from 1 in each."""

    def __init__(self, database: Database) -> None:
        self._do = database.do

    async def add(self, job_id: str, events: Sequence[JobEvent]) -> None:
        """Write events and the percentage that they reached, in one transaction; what is there already stays."""
        change = update(JOBS).where(JOBS.c.job_id == job_id).values(percentage=events[-1].percentage)

        def write(connection: Connection) -> None:
            rows = [{"job_id": job_id, "seq": e.seq, "event": e.model_dump(mode="json")} for e in events]
            # Who was told that a write failed, or was not told at all, writes again what may be there.
            connection.execute(insert_new(connection, JOB_EVENTS), rows)
            connection.execute(change)

        await self._do(write)

    async def after(self, job_id: str, seq: int, limit: int = 500) -> list[JobEvent]:
        """A job's events whose number is above `seq`, in order."""
        query = select(JOB_EVENTS.c.event).where(JOB_EVENTS.c.job_id == job_id, JOB_EVENTS.c.seq > seq)
        query = query.order_by(JOB_EVENTS.c.seq).limit(limit)
        return await self._do(lambda c: [JobEvent.model_validate(row[0]) for row in c.execute(query).all()])

    async def last(self, job_id: str) -> JobEvent | None:
        """A job's newest event, or None."""
        query = select(JOB_EVENTS.c.event).where(JOB_EVENTS.c.job_id == job_id)
        row = await self._do(lambda c: c.execute(query.order_by(JOB_EVENTS.c.seq.desc()).limit(1)).first())
        return None if row is None else JobEvent.model_validate(row[0])
