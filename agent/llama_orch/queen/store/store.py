"""What the queen keeps: the last known state of nodes, jobs, their events, the audit trail."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import URL, make_url

from llama_orch.contract.common import Problem

from . import audit, damage, jobs, schema
from .audit import AuditTable
from .database import Database
from .events import EventTable
from .jobs import JobTable
from .learnt import LearntTable
from .mending import mend
from .nodes import NodeTable

KEPT_JOBS = 1000


class Store:
    """All tables of one database, a subject each."""

    def __init__(self, url: str | URL) -> None:
        self._url = make_url(url)
        self.database = Database(self._url)
        self.nodes = NodeTable(self.database)
        self.jobs = JobTable(self.database)
        self.events = EventTable(self.database)
        self.audit = AuditTable(self.database)
        self.learnt = LearntTable(self.database)

    @property
    def problem(self) -> Problem | None:
        """Why a server did not do what it was last asked for; None where it did, or is a file."""
        return self.database.problem

    async def open(self) -> list[Problem]:
        """Bring the tables to their present form, and put right what is damaged. Raises WrongSchema.

        Answers what was damaged: a whole file of SQLite's is set aside, a row that cannot be read is taken out.
        """
        damaged = None
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            holds = "what was known of nodes and jobs is lost; nodes show again when their hives answer"
            damaged = await asyncio.to_thread(damage.set_aside_if_damaged, Path(self._url.database), holds)
        await self.database.do(schema.upgrade)
        mended = await self.database.do(mend)
        return [problem for problem in (damaged, *mended) if problem is not None]

    async def close(self) -> None:
        """Finish what is being written, and write what could not be."""
        await self.audit.close()
        await self.database.close()

    async def trim(self, kept_jobs: int = KEPT_JOBS) -> list[str]:
        """Forget ended jobs beyond the newest `kept_jobs` and old notes of the audit; answers the ids of those jobs."""

        def work(connection: schema.Connection) -> list[str]:
            audit.trim(connection)
            return jobs.trim(connection, kept_jobs)

        return await self.database.do(work)
