"""Who asked for what, and when: only ever added to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from .database import Database
from .tables import AUDIT, now

log = logging.getLogger(__name__)
KEPT = 10_000
KEPT_UNNOTED = 1000


class AuditTable:
    """The audit trail."""

    def __init__(self, database: Database) -> None:
        self._do = database.do
        # What the disk did not take yet.
        self._unnoted: list[dict[str, Any]] = []
        self._noting = asyncio.Lock()

    async def note(
        self,
        action: str,
        subject: str,
        correlation_id: str,
        *,
        principal: str | None = None,
        address: str | None = None,
        **details: Any,
    ) -> None:
        """Note that `principal`, from the network address `address`, asked for something; never a secret.

        None is the queen herself. What was asked for is done by then. So nobody is told where it cannot be noted: it
        stands in the log, and is written with the next note that can be.
        """
        values = {"at": now(), "action": action, "subject": subject, "correlation_id": correlation_id}
        values |= {"principal": principal, "address": address}
        self._unnoted = [*self._unnoted, {**values, "details": details}][-KEPT_UNNOTED:]
        try:
            await self._write()
        except Exception as error:
            log.error("cannot be noted in the audit trail: %s, %s: %r", values, details, error)  # noqa: TRY400

    async def close(self) -> None:
        """Write what could not be written."""
        with contextlib.suppress(Exception):
            await self._write()

    async def _write(self) -> None:
        async with self._noting:
            notes, self._unnoted = self._unnoted, []
            try:
                if notes:
                    await self._do(lambda c: c.execute(insert(AUDIT), notes))
            except BaseException:
                self._unnoted = [*notes, *self._unnoted][-KEPT_UNNOTED:]
                raise


def trim(connection: Connection) -> None:
    """Keep the newest notes."""
    last = connection.execute(select(func.max(AUDIT.c.number))).scalar() or 0
    connection.execute(delete(AUDIT).where(AUDIT.c.number <= last - KEPT))
