"""How many tasks each playbook had when it last succeeded: what a job's percentage goes by."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from .database import Database
from .tables import LEARNT


class LearntTable:
    """Counts of tasks by playbook."""

    def __init__(self, database: Database) -> None:
        self._do = database.do

    async def tasks_of(self, playbook: str) -> int | None:
        """How many tasks the playbook's last successful run had."""
        query = select(LEARNT.c.tasks).where(LEARNT.c.playbook == playbook)
        return await self._do(lambda c: c.execute(query).scalar())

    async def learn(self, playbook: str, tasks: int) -> None:
        """Remember how many tasks a successful run had."""

        def write(connection: Connection) -> None:
            connection.execute(delete(LEARNT).where(LEARNT.c.playbook == playbook))
            connection.execute(insert(LEARNT).values(playbook=playbook, tasks=tasks))

        await self._do(write)
