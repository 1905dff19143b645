"""Starts the remedies that the site allows where a condition keeps new workers off a GPU: rarely, never two at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from llama_orch.contract.devices import Condition, Remedy
from llama_orch.contract.queen import Job, NodeHive
from llama_orch.web import correlation

from .jobs import Jobs
from .store import Cure, OpenJobExists, Store

log = logging.getLogger(__name__)


def due(
    conditions: Iterable[Condition], allowed: frozenset[Remedy], jobs: Iterable[Job], now: datetime, interval: timedelta
) -> Cure | None:
    """The remedy to start on a node now, None where there is nothing to do or it was tried of late.

    `jobs` are the node's. One that is open forbids every remedy; one that was begun for a condition within `interval`
    forbids another for the same type of condition.
    """
    jobs = list(jobs)
    if any(job.ended_at is None for job in jobs):
        return None
    tried = {job.condition for job in jobs if job.condition is not None and now - job.created_at < interval}
    for condition in conditions:
        if condition.remedy is None or condition.remedy not in allowed or not condition.cordons:
            continue
        if condition.type not in tried:
            is_of_one = condition.remedy is Remedy.RESET_GPU and (condition.uuid or "").startswith("GPU-")
            return Cure(condition.remedy, condition.uuid if is_of_one else None, condition.type)
    return None


class Remedies:
    """Looks at what each hive tells."""

    def __init__(self, store: Store, jobs: Jobs, allowed: Iterable[Remedy], interval_s: float) -> None:
        self._store = store
        self._jobs = jobs
        self._allowed = frozenset(allowed)
        self._interval = timedelta(seconds=interval_s)

    async def seen(self, node_name: str, hive: NodeHive) -> None:
        """The node's hive answered: start what is due."""
        conditions = hive.devices.conditions if hive.devices else []
        if not any(one.cordons and one.remedy in self._allowed for one in conditions):
            return
        now = datetime.now(UTC)
        # From the store, not from memory: a queen that is restarted must not start anew what it just tried.
        jobs = await self._store.jobs_since(node_name, now - self._interval)
        cure = due(conditions, self._allowed, (job.wire for job in jobs), now, self._interval)
        if cure is None:
            return
        try:
            await self._jobs.submit("remedy", node_name, cure=cure)
        except OpenJobExists:
            return
        log.warning("the remedy %s begins on %s by itself, for %s", cure.remedy, node_name, cure.condition)
        await self._store.audit("remedy", node_name, correlation.current(), remedy=cure.remedy, by_itself=True)
