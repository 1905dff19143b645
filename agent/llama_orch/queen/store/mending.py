"""Rows that cannot be read any more are taken out when the queen starts: a node begins anew, a job is forgotten."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Connection, Table, delete, select

from llama_orch.contract.common import Problem

from . import jobs, nodes
from .tables import JOBS, NODES

log = logging.getLogger(__name__)


def mend(connection: Connection) -> list[Problem]:
    """Take out what cannot be read, and tell what it was."""
    found: list[str] = []
    for name in _unreadable(connection, NODES, NODES.c.node_name, nodes.read):
        connection.execute(delete(NODES).where(NODES.c.node_name == name))
        found.append(f"what was known of node {name}")
    for job_id in _unreadable(connection, JOBS, JOBS.c.job_id, jobs.read):
        # Also what its other columns hold may be the damage.
        jobs.forget(connection, job_id)
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
        # JSON that is none is a ValueError, and so is what pydantic refuses.
        except (ValueError, TypeError, LookupError):
            return True
        return False

    if not fails(select(table)):
        return []
    keys = [row[0] for row in connection.execute(select(key)).all()]
    return [one for one in keys if fails(select(table).where(key == one))]
